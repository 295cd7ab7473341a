"""Networks of state-space models, and Vision-RWKV, against transcriptions in numpy.

The transcriptions are short and follow the authors' code. No recording of a whole network exists;
those of the blocks are tests/goldens/op_*.npz.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.goldens import golden
from vitlab.layers.ssd import ssd
from vitlab.layers.wkv import bidirectional_wkv
from vitlab.models.registry import abstract_model
from vitlab.weights.load import load_weights
from vitlab.weights.save import to_foreign

# Deviation allowed, in standard deviations of the logits: float32 against float64, as in
# tests/goldens.
TOLERANCE = 2e-5


def filled(shapes):
    """Returns tensors by their names, in float64, with the values of recordings."""
    return {name: golden.fill(name, shape).astype(np.float64) for name, shape in shapes.items()}


def logits_of(name, tensors, images, **fields):
    """Returns the logits of a model with the authors' tensors, which must be saved as they came."""
    model = abstract_model(name, image_size=images.shape[1:3], num_classes=5, **fields)
    load_weights(model, tensors)
    back = to_foreign(model)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key].reshape(value.shape), value.astype(np.float32)) for key, value in tensors.items())
    graphdef, params = nnx.split(model)
    return jax.jit(lambda params, x: nnx.merge(graphdef, params, copy=True)(x))(params, jnp.asarray(images, jnp.float32))


def same(ours, theirs):
    assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * theirs.std()


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, 0)


def scan(x, dt, a_log, b, c, d):
    """Scans one sequence: x and dt [n, channels], b and c [n, state]."""
    h, out = np.zeros_like(a_log), np.zeros_like(x)
    for t in range(len(x)):
        h = np.exp(dt[t][:, None] * -np.exp(a_log)) * h + (dt[t] * x[t])[:, None] * b[t]
        out[t] = h @ c[t] + d * x[t]
    return out


def patches(images, w, bias):
    b, h, width, c = images.shape
    p = w.shape[-1]
    x = images.reshape(b, h // p, p, width // p, p, c)
    return np.einsum("bhpwqc,dcpq->bhwd", x, w) + bias


VIM = {
    "cls_token": (1, 1, 8), "pos_embed": (1, 7, 8), "patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,),
    "norm_f.weight": (8,), "head.weight": (5, 8), "head.bias": (5,),
}  # fmt: skip
MAMBA = {
    "mixer.in_proj.weight": (32, 8), "mixer.out_proj.weight": (8, 16), "norm.weight": (8,),
    **{f"mixer.{name}": shape for tail in ("", "_b") for name, shape in {
        f"conv1d{tail}.weight": (16, 1, 4), f"conv1d{tail}.bias": (16,), f"x_proj{tail}.weight": (5, 16), f"dt_proj{tail}.weight": (16, 1),
        f"dt_proj{tail}.bias": (16,), f"A{tail}_log": (16, 2), f"D{tail}": (16,)}.items()},
}  # fmt: skip


def rms(x, w):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w


def mamba(x, p, tail):
    """Scans one direction, from x and z, [n, channels], side by side."""
    x, z = np.split(x, 2, -1)
    padded = np.pad(x, ((3, 0), (0, 0)))
    x = silu(sum(padded[i : i + len(x)] * p(f"conv1d{tail}.weight")[:, 0, i] for i in range(4)) + p(f"conv1d{tail}.bias"))
    dt, b, c = np.split(x @ p(f"x_proj{tail}.weight").T, (1, 3), -1)
    dt = softplus(dt @ p(f"dt_proj{tail}.weight").T + p(f"dt_proj{tail}.bias"))
    return scan(x, dt, p(f"A{tail}_log"), b, c, p(f"D{tail}")) * silu(z)


def vim_by_hand(s, images):
    x = patches(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"]).reshape(len(images), -1, 8)
    half = x.shape[1] // 2
    x = np.concatenate((x[:, :half], np.repeat(s["cls_token"], len(x), 0), x[:, half:]), 1) + s["pos_embed"]
    for layer in range(2):

        def p(name, layer=layer):
            return s[f"layers.{layer}.mixer.{name}"]

        for image in range(len(x)):
            xz = rms(x[image], s[f"layers.{layer}.norm.weight"]) @ p("in_proj.weight").T
            both = mamba(xz, p, "") + mamba(xz[::-1], p, "_b")[::-1]
            x[image] += both / 2 @ p("out_proj.weight").T
    return rms(x[:, half], s["norm_f.weight"]) @ s["head.weight"].T + s["head.bias"]


def test_vim_is_the_authors_network():
    tensors = filled(VIM | {f"layers.{i}.{name}": shape for i in range(2) for name, shape in MAMBA.items()})
    images = golden.image(2, 8, 12).transpose(0, 2, 3, 1).astype(np.float64)
    ours = logits_of("vim_tiny", tensors, images, dim=8, depth=2, state_dim=2, patch_size=4)
    same(ours, vim_by_hand(tensors, images))


def norm(x, s, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * s[f"{name}.weight"] + s[f"{name}.bias"]


def conv(x, w, bias=0.0, stride=1):
    """Convolves a map [h, w, c] with a 3x3 kernel, [out, in, 3, 3] or, depthwise, [c, 1, 3, 3]."""
    padded, rows, cols = np.pad(x, ((1, 1), (1, 1), (0, 0))), x.shape[0], x.shape[1]
    out = 0
    for i in range(3):
        for j in range(3):
            tap = padded[i : i + rows : stride, j : j + cols : stride]
            out = out + (tap * w[:, 0, i, j] if w.shape[1] == 1 and len(w) == x.shape[-1] > 1 else tap @ w[:, :, i, j].T)
    return out + bias


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def vss(x, s, n):
    """Runs a block of VMamba, whose names begin with n, on a map [h, w, c]."""
    h, w = x.shape[:2]
    y = silu(conv(norm(x, s, f"{n}.norm") @ s[f"{n}.op.in_proj.weight"].T, s[f"{n}.op.conv2d.weight"]))
    inner = y.shape[-1]
    parts = [s[f"{n}.op.{name}"].reshape(4, -1, last) for name, last in (("x_proj.weight", inner), ("dt_projs.weight", 1), ("A_logs", 1))]
    total = 0
    for k, (w_x, w_dt, a_log) in enumerate(zip(*parts, strict=True)):
        seq = (y if k % 2 == 0 else y.swapaxes(0, 1)).reshape(-1, inner)[:: -1 if k > 1 else 1]
        dt, b, cc = np.split(seq @ w_x.T, (1, 2), -1)
        dt = softplus(dt @ w_dt.T + s[f"{n}.op.dt_projs_bias"][k])
        out = scan(seq, dt, a_log, b, cc, s[f"{n}.op.Ds"].reshape(4, -1)[k])[:: -1 if k > 1 else 1]
        total = total + (out.reshape(h, w, -1) if k % 2 == 0 else out.reshape(w, h, -1).swapaxes(0, 1))
    x = x + norm(total, s, f"{n}.op.out_norm") @ s[f"{n}.op.out_proj.weight"].T
    hidden = gelu(norm(x, s, f"{n}.norm2") @ s[f"{n}.mlp.fc1.weight"].T + s[f"{n}.mlp.fc1.bias"])
    return x + hidden @ s[f"{n}.mlp.fc2.weight"].T + s[f"{n}.mlp.fc2.bias"]


def vmamba_shapes(dims):
    shapes = {"classifier.norm.weight": dims[-1:], "classifier.norm.bias": dims[-1:], "classifier.head.weight": (5, dims[-1])}
    shapes["classifier.head.bias"] = (5,)
    convs = [("patch_embed", 0, 3, dims[0] // 2), ("patch_embed", 5, dims[0] // 2, dims[0])]
    convs += [(f"layers.{i}.downsample", 1, dims[i], dims[i + 1]) for i in range(len(dims) - 1)]
    for name, i, d_in, d in convs:
        shapes |= {f"{name}.{i}.weight": (d, d_in, 3, 3), f"{name}.{i}.bias": (d,)}
        shapes |= {f"{name}.{i + 2}.weight": (d,), f"{name}.{i + 2}.bias": (d,)}
    for i, d in enumerate(dims):
        parts = {
            "norm.weight": (d,), "norm.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,), "op.in_proj.weight": (2 * d, d),
            "op.conv2d.weight": (2 * d, 1, 3, 3), "op.x_proj.weight": (12, 2 * d), "op.dt_projs.weight": (8 * d, 1),
            "op.dt_projs_bias": (4, 2 * d), "op.A_logs": (8 * d, 1), "op.Ds": (8 * d,), "op.out_norm.weight": (2 * d,),
            "op.out_norm.bias": (2 * d,), "op.out_proj.weight": (d, 2 * d), "mlp.fc1.weight": (2 * d, d), "mlp.fc1.bias": (2 * d,),
            "mlp.fc2.weight": (d, 2 * d), "mlp.fc2.bias": (d,),
        }  # fmt: skip
        shapes |= {f"layers.{i}.blocks.0.{name}": shape for name, shape in parts.items()}
    return shapes


def vmamba_by_hand(s, image):
    x = gelu(norm(conv(image, s["patch_embed.0.weight"], s["patch_embed.0.bias"], 2), s, "patch_embed.2"))
    x = vss(norm(conv(x, s["patch_embed.5.weight"], s["patch_embed.5.bias"], 2), s, "patch_embed.7"), s, "layers.0.blocks.0")
    x = conv(x, s["layers.0.downsample.1.weight"], s["layers.0.downsample.1.bias"], 2)
    x = vss(norm(x, s, "layers.0.downsample.3"), s, "layers.1.blocks.0")
    return norm(x, s, "classifier.norm").mean((0, 1)) @ s["classifier.head.weight"].T + s["classifier.head.bias"]


def test_vmamba_is_the_authors_network():
    tensors = filled(vmamba_shapes((8, 16)))
    images = golden.image(2, 22, 30).transpose(0, 2, 3, 1).astype(np.float64)
    ours = logits_of("vmamba_tiny_s1l8", tensors, images, dim=8, depths=(1, 1), ratio=2.0, mlp_ratio=2.0)
    same(ours, np.stack([vmamba_by_hand(tensors, image) for image in images]))


def rwkv_shapes(d, layers):
    shapes = {"pos_embed": (1, 6, d), "patch_embed.projection.weight": (d, 3, 4, 4), "patch_embed.projection.bias": (d,)}
    shapes |= {"ln1.weight": (d,), "ln1.bias": (d,), "head.fc.weight": (5, d), "head.fc.bias": (5,)}
    for i in range(layers):
        norms = ["ln1", "ln2", "ln0"][: 2 + (i == 0)]
        parts = {f"{name}.{leaf}": (d,) for name in [*norms, "att.key_norm"] for leaf in ("weight", "bias")}
        parts |= {f"att.{name}.weight": (d, d) for name in ("key", "value", "receptance", "output")}
        parts |= {f"att.spatial_mix_{name}": (1, 1, d) for name in "kvr"} | {f"ffn.spatial_mix_{name}": (1, 1, d) for name in "kr"}
        parts |= {"att.spatial_decay": (d,), "att.spatial_first": (d,), "gamma1": (d,), "gamma2": (d,)}
        parts |= {"ffn.key_norm.weight": (2 * d,), "ffn.key_norm.bias": (2 * d,), "ffn.key.weight": (2 * d, d)}
        parts |= {"ffn.receptance.weight": (d, d), "ffn.value.weight": (d, 2 * d)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in parts.items()}
    return shapes


def shifted(x):
    """Moves quarters of the channels of a map [h, w, c] to the right, left, down and up."""
    out, q = np.zeros_like(x), x.shape[-1] // 4
    out[:, 1:, :q], out[:, :-1, q : 2 * q] = x[:, :-1, :q], x[:, 1:, q : 2 * q]
    out[1:, :, 2 * q : 3 * q], out[:-1, :, 3 * q :] = x[:-1, :, 2 * q : 3 * q], x[1:, :, 3 * q :]
    return out


def rwkv_block(x, s, n):
    """Runs a block whose norms follow its branches, on a map [h, w, c]."""

    def mixed(x, name):
        share = s[f"{n}.{name}"][0, 0]
        return x * share + shifted(x) * (1 - share)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    k, v, r = (
        mixed(x, f"att.spatial_mix_{a}") @ s[f"{n}.att.{b}.weight"].T for a, b in zip("kvr", ("key", "value", "receptance"), strict=True)
    )
    flat = (-1, x.shape[-1])
    k, v = k.reshape(flat), v.reshape(flat)
    count = len(k)
    distance = np.abs(np.arange(count)[:, None] - np.arange(count))[..., None]
    logits = -(distance - 1) * s[f"{n}.att.spatial_decay"] / count + k
    weights = np.exp(np.where(distance == 0, s[f"{n}.att.spatial_first"] / count + k, logits))
    y = norm((weights * v).sum(1) / weights.sum(1), s, f"{n}.att.key_norm").reshape(x.shape)
    x = x + s[f"{n}.gamma1"] * norm((sigmoid(r) * y) @ s[f"{n}.att.output.weight"].T, s, f"{n}.ln1")
    hidden = norm(np.maximum(mixed(x, "ffn.spatial_mix_k") @ s[f"{n}.ffn.key.weight"].T, 0) ** 2, s, f"{n}.ffn.key_norm")
    gate = sigmoid(mixed(x, "ffn.spatial_mix_r") @ s[f"{n}.ffn.receptance.weight"].T)
    return x + s[f"{n}.gamma2"] * norm(gate * (hidden @ s[f"{n}.ffn.value.weight"].T), s, f"{n}.ln2")


def rwkv_by_hand(s, images):
    out = []
    for x in patches(images, s["patch_embed.projection.weight"], s["patch_embed.projection.bias"]):
        x = norm(x + s["pos_embed"].reshape(x.shape), s, "layers.0.ln0")
        x = rwkv_block(rwkv_block(x, s, "layers.0"), s, "layers.1")
        out.append(norm(x, s, "ln1").mean((0, 1)) @ s["head.fc.weight"].T + s["head.fc.bias"])
    return np.stack(out)


def test_vision_rwkv_is_the_authors_network():
    tensors = filled(rwkv_shapes(8, 2))
    images = golden.image(2, 8, 12).transpose(0, 2, 3, 1).astype(np.float64)
    ours = logits_of("vrwkv_small", tensors, images, dim=8, depth=2, patch_size=4, key_norm=True, hidden_ratio=2)
    same(ours, rwkv_by_hand(tensors, images))


def test_vision_rwkv_s_weights_never_overflow():
    key = jnp.asarray(np.random.default_rng(0).standard_normal((1, 9, 3)) * 1e4, jnp.float32)
    out, grad = jax.value_and_grad(lambda key: bidirectional_wkv(key, jnp.ones_like(key), jnp.full(3, 1e3), jnp.ones(3)).sum())(key)
    np.testing.assert_allclose(out, key.size, rtol=1e-6)
    assert np.isfinite(grad).all()


def test_mamba2_s_products_are_the_recurrence():
    rng = np.random.default_rng(0)
    x, decay = rng.standard_normal((1, 70, 2, 3)), -np.exp(rng.standard_normal((1, 70, 2)))
    b, c = rng.standard_normal((2, 1, 70, 1, 4))
    h, out = np.zeros((2, 4, 3)), np.zeros(x.shape)
    for t in range(70):
        h = np.exp(decay[0, t])[:, None, None] * h + b[0, t, 0][:, None] * x[0, t][:, None]
        out[0, t] = np.einsum("s,hsp->hp", c[0, t, 0], h)
    ours = jax.jit(ssd)(*(jnp.asarray(v, jnp.float32) for v in (x, decay, b, c)))
    same(ours, out)
