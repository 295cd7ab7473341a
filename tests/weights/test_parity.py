"""The zoo against recorded outputs and input gradients of the authors' code (tests/goldens)."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.goldens import golden
from tests.weights.recorded import classes_of, model_of
from vitlab import create_model, load_weights
from vitlab.models.registry import abstract_model, list_models

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"
ORIGINS = {"hf_", "facebook_", "google_", "openai_", "openclip_", "apple_", "microsoft_", "stvit_"}
OWN = {"morpmamba_", "mhsvm_", "hrvmamba_"}  # not recorded as logits of classes: compared by tests/models/test_<family>.py
FAMILIES = sorted(({name.split("_")[0] + "_" if "_" in name else name for name in list_models()} | ORIGINS) - OWN)


# In a ReLU network a pre-activation within rounding of zero switches a path on or off, so that the
# largest deviation of the gradient is chance: the network in float64, whose logits agree with
# nextvit_small's recorded float64 logits to 2.4e-7, misses its recorded float32 gradient by 4.3e-2
# all the same (and by 7.6e-4 at the median). shvit_s1's network in float64 agrees with its recorded
# gradient to 8.4e-6, and in float32, as the processor rounds, to 1e-3 or 2.5e-2 (6.1e-6 at the
# median). halonet_h1's input changed by 1e-7 of itself, which moves the logits by 4e-7, moves the
# largest deviation between 7.1e-3 and 0.16 (3e-6 to 7e-6 at the median); on another processor it
# was below 2.1e-3, and 0.16 with fewer optimizations. dynperceiver_mbv3_075_t128's network in
# float64 agrees with its recorded float64 logits to 2e-13, and misses its recorded float32 gradient
# by 1.9e-2 (5e-6 at the median), where the network in float32 misses it by 0.11 (6e-6). For these
# the gate holds at the median, and for the norm of the whole gradient. hiera_small_abswin takes the
# maxima of 2 x 2 tokens as they are: its logits agree to 5e-7 and the gradient's norm to 2e-6, and
# where two tokens are within rounding of each other the gradient goes to one or to the other
# (2.7e-2 at most).
KINKED = ("dynperceiver", "halonet", "nextvit", "shvit", "hiera_small_abswin")  # beginnings of names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """Deviations of the model from the recording, in the recorded values' standard deviations."""

    logits: float  # largest deviation
    grad: float = 0.0  # largest deviation of the input gradient, if the recording has one
    grad_median: float = 0.0
    grad_norm: float = 0.0  # relative deviation of the gradient's norm
    meta: dict


def deviation(path: pathlib.Path, model=None) -> Deviation:
    meta, state, recorded = golden.load(path)
    if model is None:
        name, fields = model_of(path.stem, meta)
        # The model has shapes only: loading is strict, so that every parameter gets its value, and
        # initial values need not be computed. Blocks that are alike are compiled once:
        # tests/layers/test_blocks.py shows that the numbers are those of blocks in turn.
        shapes = {tensor: value.shape for tensor, value in state.items()}
        options = {"num_classes": classes_of(meta, shapes), "image_size": tuple(meta["image_size"]), "scan_blocks": True}
        model = abstract_model(name, **options, **fields)
    load_weights(model, state)
    graphdef, params = nnx.split(model)
    x = jnp.asarray(golden.image(len(recorded["logits"]), *meta["image_size"], meta.get("channels", 3)).transpose(0, 2, 3, 1))
    cotangent = golden.cotangent(*recorded["logits"].shape)

    @jax.jit
    def forward_and_pull_back(params, x):
        logits, pull_back = jax.vjp(lambda x: nnx.merge(graphdef, params, copy=True)(x), x)
        return logits, pull_back(jnp.asarray(cotangent, logits.dtype))[0]

    logits, whole = jax.tree.map(np.asarray, forward_and_pull_back(params, x))
    grad = whole.transpose(0, 3, 1, 2)[:, :, ::8, ::8]
    off_logits = np.abs(logits - recorded["logits"]) / recorded["logits"].std()
    if "grad_input" not in recorded:
        return Deviation(logits=off_logits.max(), meta=meta)
    off_grad = np.abs(grad - recorded["grad_input"]) / recorded["grad_input"].std()
    return Deviation(
        logits=off_logits.max(),
        grad=off_grad.max(),
        grad_median=np.median(off_grad),
        grad_norm=abs(np.linalg.norm(whole) / recorded["grad_input_norm"] - 1),
        meta=meta,
    )


def deviation_in_float64(path: pathlib.Path, monkeypatch) -> Deviation:
    """Deviation of the model computed in float64: in networks that sort, rounding to float32 may
    swap what is sorted.
    """
    meta, _, _ = golden.load(path)
    name, fields = model_of(path.stem, meta)
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    with jax.enable_x64(True):
        model = abstract_model(name, num_classes=meta["num_classes"], image_size=tuple(meta["image_size"]), **fields)
        for _, module in nnx.iter_modules(model):
            for field in {"dtype", "out_dtype"} & vars(module).keys():
                setattr(module, field, jnp.float64)
        return deviation(path, model)


@pytest.mark.goldens(*FAMILIES)
def test_agrees_with_the_authors(golden_file, monkeypatch):
    if golden_file.stem.endswith("_f64"):
        off = deviation_in_float64(golden_file, monkeypatch)
        # The recording is of float64 too; the parameters and constants of both are rounded to
        # float32.
        assert max(off.logits, off.grad, off.grad_norm) <= 1e-6
        return
    off = deviation(golden_file)
    gate = max(1e-3, 500 * off.meta["fp32_noise"])  # both gates are those of tests/goldens/README.md
    assert off.logits <= max(2e-5, 10 * off.meta["fp32_noise"])
    assert (off.grad_median if golden_file.stem.startswith(KINKED) else off.grad) <= gate
    assert off.grad_norm <= gate


def test_the_gate_sees_a_wrong_gelu():
    model = create_model("swin_tiny")
    for stage in model.layers:
        for block in stage.blocks:
            block.mlp.activation = jax.nn.gelu  # replaced by the tanh approximation
    assert deviation(GOLDENS / "swin_tiny_patch4_window7_224.npz", model).logits > 2e-5


def test_the_gate_sees_a_wrong_epsilon():
    # An epsilon of 1e-5 in place of 1e-6 moves the logits by 3.9e-2 in SpectFormer, whose first
    # norms see small variances. In Swin, whose recorded variances are about one, it moves them by
    # 1.2e-5, too little for a gate above float32 noise.
    model = create_model("spectformer_xs")
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LayerNorm):
            assert module.epsilon == 1e-6
            module.epsilon = 1e-5
    assert deviation(GOLDENS / "spectformer_xs.npz", model).logits > 2e-5


def test_the_gate_sees_a_transposed_bias_table(monkeypatch):
    from vitlab.weights.rules import SquareTable

    right = SquareTable.forward
    monkeypatch.setattr(SquareTable, "forward", lambda self, table: right(self, table).swapaxes(1, 2))
    assert deviation(GOLDENS / "swin_tiny_patch4_window7_224.npz").logits > 2e-5
