"""Settings of every test: the CPU, quick compilation, a compilation cache in the checkout.

Subprocesses of tests inherit the settings.
"""

import gc
import os
import pathlib
import resource

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Tests compute little, so that compilation dominates: it takes twice as long with the optimizations
# that users get ("false").
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Triton kernels, where Triton is installed, run on the host; Triton reads this when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# gcsfs reads this when it is imported; otherwise it asks Google of which kind each bucket is, an
# emulator's too.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import hypothesis
import jax
import jaxtyping
import pytest

from tests.emulator import BUCKET, Emulator, moto

# Hypothesis draws the same examples in every run, and no example fails for being slow.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# XLA's fusion emitters triple the time to compile a network for the CPU; newer versions of jax are
# quicker and refuse the flag. Splitting a program to compile its parts side by side costs 5 %,
# since the test workers occupy the cores.
if jax.__version_info__ < (0, 11):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

# Tracing creates millions of objects, few of them garbage; searching for garbage every 700 objects
# takes a fifth of the time.
gc.set_threshold(50_000, 10, 10)

MOST_MEMORY = 2.5e9  # bytes of a worker above which its compiled programs are dropped

GOLDENS = pathlib.Path(__file__).parent / "goldens"

STRICT_ROOMS = {"device", "metrics"}
CHECKED_ROOMS = {"layers", "mixers", "pallas_kernels"}


@pytest.fixture(autouse=True)
def shapes_are_checked_where_it_is_told(request, monkeypatch):
    """Compares arguments with their annotated shapes in CHECKED_ROOMS and in tests marked `shapes`.

    Each family has one such test; checking in all of them would double the time to trace.
    """
    told = request.path.parent.name in CHECKED_ROOMS or "shapes" in request.keywords
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", not told)


@pytest.fixture(autouse=True)
def losses_say_how_ranks_are_joined(request):
    """Refuses to broadcast [b] to [b, n] in silence, the classic fault of losses and metrics.

    Layers add biases [c] to maps [.., c], so that the rule is not for networks.
    """
    strict = request.path.parent.name in STRICT_ROOMS or request.path.name == "test_losses.py"
    with jax.numpy_rank_promotion("raise" if strict else "allow"):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_do_not_pile_up():
    """Drops compiled programs after a module if the worker takes more than MOST_MEMORY.

    A worker that keeps the programs of all tests grows to 6 GB.
    """
    yield
    statm = pathlib.Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    if pages * resource.getpagesize() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def google(tmp_path_factory):
    """An emulator of Google's buckets, to which this process and its children are led."""
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package, reason=f"needs {package}, of the extra test-cloud")
    with Emulator(tmp_path_factory.mktemp("google")) as emulator, pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        yield emulator


@pytest.fixture(scope="session")
def amazon():
    """An emulator of Amazon's buckets, with one."""
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(package, reason=f"needs {package}, of the extra test-cloud")
    import s3fs

    with moto() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield


def pytest_addoption(parser):
    parser.addoption("--goldens", type=pathlib.Path, help="folder of recordings (*.npz): only tests on recordings run, on those in it")


def pytest_generate_tests(metafunc):
    """Runs tests marked `goldens("name", ...)` once per recording, as `golden_file`.

    A test gets the recordings whose file names begin with one of the names.
    """
    if marker := metafunc.definition.get_closest_marker("goldens"):
        files = [path for path in golden_files(metafunc.config) if path.stem.startswith(marker.args)]
        metafunc.parametrize("golden_file", files, ids=[path.stem for path in files])


def pytest_collection_modifyitems(config, items):
    """Leaves other tests out under --goldens; a folder without recordings is an error."""
    if not config.getoption("goldens"):
        return
    chosen = [item for item in items if isinstance(_golden_file(item), pathlib.Path)]
    if not chosen:
        raise pytest.UsageError(f"--goldens={config.getoption('goldens')}: the folder has no recording, *.npz")
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _golden_file(item):
    return item.callspec.params.get("golden_file") if hasattr(item, "callspec") else None


def golden_files(config) -> list[pathlib.Path]:
    return sorted((config.getoption("goldens") or GOLDENS).glob("*.npz"))
