"""The benchmark finds operators by their packages and runs or explains every implementation.

It never calls a counted figure measured.
"""

import csv

import jax
import pytest

from pallas_kernels import benchmark, neighborhood_attention, support
from pallas_kernels import compile as compile_
from pallas_kernels.compile import TARGETS
from pallas_kernels.window_attention import IMPLEMENTATIONS, window_attention
from pallas_kernels.window_attention.opponents import OPPONENTS, roll_and_partition
from pallas_kernels.window_attention.shapes import MODELS


@pytest.fixture(autouse=True)
def one_repeat(monkeypatch):
    monkeypatch.setattr(benchmark, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "MIN_REPEATS", 1)


def test_finds_the_operators_that_have_shapes():
    assert "window_attention" in benchmark.operators()


def test_times_what_runs_here_and_says_why_the_rest_does_not(tmp_path, capsys):
    path = tmp_path / "deep" / "results.csv"
    command = ["window_attention", "--shapes", "swin_tiny_stage4", "--batch", "1", "--targets", "--output", str(path)]
    assert benchmark.main(command) == 0
    lines = list(csv.DictReader(path.open()))
    assert [line["implementation"] for line in lines] == [*IMPLEMENTATIONS, *OPPONENTS] * 2
    for line in lines:
        measured = line["kind"] == "measured"
        assert measured == bool(line["microseconds"]) == bool(line["ratio"])
        if line["implementation"] in ("xla", "reference"):
            assert measured, line
        if line["implementation"] == "pallas_tpu":
            assert "it needs a TPU, not cpu" in line["kind"]
        assert (line["device"], line["batch"]) == ("cpu", "1")
        assert f"jax {jax.__version__}" in line["versions"]
    assert min(float(line["ratio"]) for line in lines if line["ratio"]) == 1.0
    assert "swin_tiny_stage4 x1" in capsys.readouterr().out
    assert benchmark.main(command) == 0
    assert len(list(csv.DictReader(path.open()))) == 2 * len(lines)  # rows are appended below one header


def counted(monkeypatch, target, **figures):
    result = {"op": "window_attention", "shape": "swin_tiny_stage1", "dtype": "bfloat16", "pass": "forward", "temp_bytes": 0}
    monkeypatch.setattr(benchmark, "missing", lambda _: None)
    monkeypatch.setattr(benchmark, "compile_all", lambda *_, **__: [result | figures])
    (line,) = benchmark.count(target, "window_attention", (), ())
    return line


def test_counted_time_is_the_larger_of_cycles_and_traffic(monkeypatch):
    line = counted(monkeypatch, "v5e", cycles={"window_attention_forward": 1_400_000}, xla_cycles=100_000)
    assert (line.kind, line.microseconds) == ("counted", 1000.0)
    assert line.roofline == pytest.approx(MODELS["swin_tiny_stage1"].bytes("bfloat16") / 819e9 / 1e-3, abs=1e-3)
    line = counted(monkeypatch, "v5e", cycles={"window_attention_forward": 100}, xla_cycles=0)
    assert line.roofline == 1.0


def test_a_gpu_that_is_not_here_gets_its_compiler_s_facts_and_no_time(monkeypatch):
    line = counted(monkeypatch, "h100", ptxas={"window_attention_forward": {"registers": 145, "spilled_bytes": 0}})
    assert (line.kind, line.microseconds, line.note) == ("counted", None, "145 registers, 0 bytes spilled")


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setattr(benchmark, "missing", lambda target: f"no compiler for {target}")
    (line,) = benchmark.count("h100", "window_attention", (), ())
    assert (line.kind, line.microseconds) == ("no compiler for h100", None)


def test_the_definition_is_not_run_where_its_scores_do_not_fit():
    with pytest.raises(ValueError, match="the definition needs 100 GiB"):
        benchmark._ours(None, MODELS["swin_tiny_detection"], "float32", "reference", "forward")


@pytest.mark.parametrize(
    ("main", "command", "words"),
    [
        (benchmark.main, ["windows"], 'unknown operator "windows": did you mean window_attention?'),
        (benchmark.main, ["nope"], 'unknown operator "nope": choices: attention, neighborhood_attention, selective_scan, window_attention'),
        (benchmark.main, ["window_attention", "--shapes", "swin_tiny"], 'no shape "swin_tiny": did you mean swin_tiny_stage1'),
        (benchmark.main, ["window_attention", "--dtypes", "int3"], "invalid choice: 'int3'"),
        (benchmark.main, ["--batch", "0"], "--batch=0 must be at least 1"),
        (support.main, ["nope"], 'unknown operator "nope"'),
        (compile_.main, ["v5", "window_attention"], 'unknown target "v5": did you mean v5e, v5p'),
        (compile_.main, ["v5e", "window_atention"], "did you mean window_attention"),
        (compile_.main, ["v5e", "window_attention", "--shapes", "none"], 'window_attention has no shape "none"'),
    ],
)
def test_unknown_names_are_one_line_with_the_near_ones(main, command, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(command)
    errors = capsys.readouterr().err
    assert exit_.value.code == 2 and words in errors and len(errors.splitlines()) == 1


def test_every_target_names_an_implementation():
    named = {name for target in TARGETS.values() for name in target.implementations}
    assert named <= {*IMPLEMENTATIONS, *neighborhood_attention.IMPLEMENTATIONS}


@pytest.mark.parametrize("name", ["swin_tiny_stage3_shifted", "maxvit_tiny_stage3_grid"])
def test_the_opponent_computes_the_same(name):
    shape = MODELS[name].batched(1)
    arrays, options = shape.arguments()
    theirs, ours = roll_and_partition(shape, "float32", "forward")(), window_attention(*arrays, **options)
    assert abs(theirs - ours).max() < 1e-5  # float32, values of a few units
