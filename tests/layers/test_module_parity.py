"""Plug-in modules against recorded outputs and input gradients of the authors' code."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.goldens import golden
from vitlab.layers.criss_cross import CrissCrossAttention
from vitlab.layers.dvss import DVSSBlock
from vitlab.layers.ela import SIZES, Ela
from vitlab.layers.gaussian_adaptive import GaussianAdaptiveAttention
from vitlab.layers.msa_conv import MSAConv
from vitlab.layers.polarized import PolarizedSelfAttention
from vitlab.layers.ulsam import Ulsam
from vitlab.layers.union_of_experts import UnionAttention, UnionMlp
from vitlab.mixers.bidirectional_mamba import BidirectionalMamba
from vitlab.mixers.deformable_scan import DeformableScan
from vitlab.mixers.mamba2 import Mamba2
from vitlab.mixers.ss2d import SS2D
from vitlab.mixers.vision_rwkv import ChannelMix, SpatialMix
from vitlab.weights.load import load_weights
from vitlab.weights.save import to_foreign

RNGS = nnx.Rngs(0)


def ela(kwargs):
    return Ela(
        kwargs["channel"],
        kernel_size=kwargs["kernel_size"],
        group_dim=kwargs["channel"] // kwargs["groups"],
        num_groups=kwargs["num_groups"],
        rngs=RNGS,
    )


def gaussian(kwargs):
    # The recording has the channels first: its axis 1 is the last one here, its axes 2 and 3 are 1
    # and 2.
    axes = tuple({0: 0, 1: -1}.get(axis, axis - 1) if axis >= 0 else {-1: 2, -2: 1, -3: -1}[axis] for axis in kwargs["norm_axes"])
    heads, gaussians = tuple(kwargs["num_heads"]), tuple(kwargs["num_gaussians"])
    return GaussianAdaptiveAttention(axes=axes, num_heads=heads, num_gaussians=gaussians, rngs=RNGS)


def msa_conv(kwargs):
    options = {name: kwargs[name] for name in ("kernel_size", "stride", "padding", "dilation") if name in kwargs}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return MSAConv(kwargs["input_channel"], kwargs["output_channel"], use_bias=kwargs.get("bias", False), **options, rngs=RNGS)


def union_attention(kwargs):
    return UnionAttention(
        kwargs["transformer_dim"], num_heads=kwargs["attn_n_experts"], top_k=kwargs["attn_topk"], eps=kwargs["epsilon"], rngs=RNGS
    )


def union_mlp(kwargs):
    return UnionMlp(
        kwargs["transformer_dim"],
        mlp_dim=kwargs["transformer_hidden_dim"],
        num_experts=kwargs["n_experts"],
        top_k=kwargs["topk"],
        eps=kwargs["epsilon"],
        rngs=RNGS,
    )


def state_space(kwargs, **options):
    """Returns the fields of a mixer by those arguments of the authors' constructor that it has."""
    names = {"d_state": "state_dim", "ssm_ratio": "ratio", "expand": "ratio", "dt_rank": "rank", "d_conv": "kernel_size"}
    fields = {
        names[key]: float(value) if names[key] == "ratio" else value for key, value in kwargs.items() if key in names and value != "auto"
    }
    return {**options, **fields, "rngs": RNGS}


def ss2d(kwargs):
    gate = not kwargs.get("forward_type", "v2").endswith("_noz")
    return SS2D(kwargs["d_model"], **state_space(kwargs, state_dim=16, ratio=2.0, conv_bias=kwargs.get("conv_bias", True), gate=gate))


def vim(kwargs):
    return BidirectionalMamba(kwargs["d_model"], **state_space(kwargs, average=kwargs.get("if_divide_out", False)))


def mamba2(kwargs):
    options = {"head_dim": kwargs.get("headdim", 128), "groups": kwargs.get("ngroups", 1), "orders": "rows"}
    return Mamba2(kwargs["d_model"], **state_space(kwargs, **options))


def vrwkv(kwargs):
    options = {"layer": kwargs["layer_id"], "num_layers": kwargs["n_layer"], "key_norm": kwargs.get("key_norm", False), "rngs": RNGS}
    if "hidden_rate" in kwargs:
        return ChannelMix(kwargs["n_embd"], hidden=kwargs["hidden_rate"] * kwargs["n_embd"], dtype=jnp.float32, **options)
    return SpatialMix(kwargs["n_embd"], **options)


def dvss(kwargs):
    dim = kwargs["hidden_dim"]
    small = "se_lpu" in kwargs["file"]  # file of the authors' tiny and nano networks
    options = {"state_dim": kwargs["ssm_d_state"], "ratio": kwargs["ssm_ratio"], "local_offsets": dim % 80 == 0, "reduction": 8 * small}
    return DVSSBlock(dim, mixer=DeformableScan(dim, **options, rngs=RNGS), mlp_ratio=kwargs["mlp_ratio"], local=small, rngs=RNGS)


# Beginning of a recording's name -> the module by the arguments of the authors' constructor.
MODULES = {
    "ulsam": lambda kwargs: Ulsam(kwargs["nin"], num_splits=kwargs["num_splits"], rngs=RNGS),
    "ela_": ela,
    "psa_p": lambda kwargs: PolarizedSelfAttention(kwargs["inplanes"], layout="parallel", rngs=RNGS),
    "psa_s": lambda kwargs: PolarizedSelfAttention(kwargs["inplanes"], layout="sequential", rngs=RNGS),
    "ccnet_cca": lambda kwargs: CrissCrossAttention(kwargs["in_dim"], rngs=RNGS),
    "gaussian_adaptive": gaussian,
    "hrvmamba_block": dvss,
    "tic_": msa_conv,
    "uoe_smha": union_attention,
    "uoe_mlp": union_mlp,
    "op_ss2d": ss2d,
    "op_vim": vim,
    "op_mamba2": mamba2,
    "op_vrwkv": vrwkv,
}
UNUSED = ("kv_norm.", "layer_norm.", "switch_gate.s_gate.", "linear3.")  # parameters that the authors' modules do not use


@pytest.mark.goldens(*MODULES)
def test_agrees_with_the_authors(golden_file):
    meta, state, recorded = golden.load(golden_file)
    module = next(make for name, make in MODULES.items() if golden_file.stem.startswith(name))(
        {"file": meta.get("file", ""), **meta["kwargs"]}
    )
    load_weights(module, state)
    back = to_foreign(module)
    for name, value in state.items():
        assert name.startswith(UNUSED) or np.array_equal(back[name].reshape(value.shape), value), name

    graphdef, params = nnx.split(module)
    options = {"train": False, "rngs": None} if isinstance(module, DVSSBlock) else {}
    x = golden.image(len(recorded["logits"]), *meta["image_size"], meta["channels"]).transpose(0, 2, 3, 1)

    @jax.jit
    def forward_and_pull_back(params, x):
        out, pull_back = jax.vjp(lambda x: nnx.merge(graphdef, params, copy=True)(x, **options), x)
        return out, pull_back(jnp.ones_like(out))[0]

    out, grad = (np.asarray(y).transpose(0, 3, 1, 2) for y in forward_and_pull_back(params, jnp.asarray(x)))
    off = np.abs(out - recorded["logits"]).max() / recorded["logits"].std()
    assert off <= max(2e-5, 10 * meta["fp32_noise"])  # both gates are those of tests/goldens/README.md
    gate = max(1e-3, 500 * meta["fp32_noise"])
    assert np.abs(grad[:, :, ::8, ::8] - recorded["grad_input"]).max() / recorded["grad_input"].std() <= gate
    assert abs(np.linalg.norm(grad) / recorded["grad_input_norm"] - 1) <= gate


def noise(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("kernel_size, group_dim, num_groups", SIZES.values(), ids=SIZES)
def test_ela_divides_widths_that_its_groups_do_not(kernel_size, group_dim, num_groups):
    module = Ela(144, kernel_size=kernel_size, group_dim=group_dim, num_groups=num_groups, rngs=RNGS)
    assert module.gn.num_groups == math.gcd(144, num_groups)
    assert jax.eval_shape(module, noise(1, 4, 6, 144)).shape == (1, 4, 6, 144)


def test_criss_cross_attention_is_the_identity_at_first_and_twice_it_sees_everything():
    module, x = CrissCrossAttention(8, rngs=RNGS), noise(1, 4, 5, 8)
    np.testing.assert_array_equal(module(x), x)
    module.gamma[...] = jnp.ones(1)
    reach = jax.jacobian(lambda x: module(module(x))[0, 0, 0].sum())(x)
    assert (jnp.abs(reach).sum(-1) > 0).all()


def test_gaussian_heads_weigh_usual_values_most():
    module = GaussianAdaptiveAttention(num_heads=(1,), num_gaussians=(1,), rngs=RNGS)
    x = jnp.asarray([[1.0, 2.0, 3.0, 10.0]])
    weights = np.asarray((module(x) - x) / x)[0]
    assert weights.argmin() == 3
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


def test_msa_conv_weighs_taps_outside_of_the_map_as_zeros():
    module = MSAConv(4, 4, kernel_size=3, rngs=RNGS)
    module.qkv_conv.kernel[...] = jnp.eye(4, 12, k=8)  # queries and keys are 0, so that all taps weigh the same
    module.mlp.kernel[...] = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
    np.testing.assert_allclose(module(jnp.ones((1, 2, 2, 4))), 1 + 4 / 9, rtol=1e-6)


@pytest.mark.parametrize(
    "make, rule",
    [
        (lambda: Ulsam(10, num_splits=4, rngs=RNGS), "must be a multiple of num_splits=4"),
        (lambda: Ela(10, group_dim=4, rngs=RNGS), "must be a multiple of group_dim=4"),
        (lambda: PolarizedSelfAttention(4, layout="sequential", rngs=RNGS), "at least 8"),
        (lambda: MSAConv(4, 4, kernel_size=2, rngs=RNGS), "must be odd"),
        (lambda: UnionAttention(8, num_heads=4, rngs=RNGS), "multiple of 4"),
        (lambda: UnionMlp(8, mlp_dim=10, num_experts=4, rngs=RNGS), "multiple of num_experts=4"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()
