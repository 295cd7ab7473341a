"""Super token attention (Huang et al., arXiv:2211.11167, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.linear import Linear
from vitlab.layers.pad import pad_to_multiple

_NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


class _HeadMajorAttention(nnx.Module):
    """Global self-attention whose fused projection is [heads, 3, head_dim], as the authors'."""

    def __init__(self, dim: int, *, num_heads: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, self.num_heads, 3, self.head_dim)
        out = dot_product_attention(*(qkv[..., i, :] for i in range(3)))
        return self.proj(out.reshape(x.shape))


class SuperTokenAttention(nnx.Module):
    """Tokens are softly assigned to nearby super tokens, which attend globally and are given back.

    A super token stands for a cell of the map; each token is assigned to those of the 3x3 cells
    around it, so that the assignment is sparse: 9 shares per token. As in the authors' code,
    neighbours outside the grid take part as zeros (a logit of 0) instead of being masked, no
    gradient flows through the assignment, and one iteration is made. With cells of one token this
    is plain global attention. A map that is not whole cells is padded with zeros.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        cell_size: Side = 4,  # tokens per side of a super token's cell
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.cell_size = cell_size
        self.stoken_refine = _HeadMajorAttention(dim, num_heads=num_heads, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if self.cell_size == 1:
            return self.stoken_refine(x)
        _, h, w, c = x.shape
        s = self.cell_size
        x = pad_to_multiple(x, s)
        b, rows, cols = x.shape[0], x.shape[1] // s, x.shape[2] // s
        cells = x.reshape(b, rows, s, cols, s, c).swapaxes(2, 3).reshape(b, rows, cols, s * s, c)
        share = jax.lax.stop_gradient(_assign(cells, cells.mean(3)))
        super_tokens = _gather_to_cells(jnp.einsum("brcnk,brcnd->brckd", share, cells))
        mass = _gather_to_cells(share.sum(3)[..., None])
        super_tokens = self.stoken_refine(super_tokens / (mass + 1e-12).astype(x.dtype))
        out = jnp.einsum("brcnk,brckd->brcnd", share, _neighbours(super_tokens))
        return out.reshape(b, rows, cols, s, s, c).swapaxes(2, 3).reshape(x.shape)[:, :h, :w]


def _assign(cells: Float[Array, "b r c n d"], super_tokens: Float[Array, "b r c d"]) -> Float[Array, "b r c n 9"]:
    """Returns each token's shares in the nine cells around it: a softmax, in float32."""
    logits = jnp.einsum("brcnd,brckd->brcnk", cells, _neighbours(super_tokens), preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * cells.shape[-1] ** -0.5).astype(cells.dtype)


def _neighbours(x: Float[Array, "b r c d"]) -> Float[Array, "b r c 9 d"]:
    """Returns the 3x3 cells around each cell, row by row, with zeros outside the grid."""
    _, rows, cols, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.stack([padded[:, 1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + cols] for dy, dx in _NEIGHBOURS], 3)


def _gather_to_cells(x: Float[Array, "b r c 9 d"]) -> Float[Array, "b r c d"]:
    """Adds up, for each cell, the nine values that its neighbours hold for it.

    This is the transpose of `_neighbours`.
    """
    _, rows, cols, _, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return sum(
        (padded[:, 1 - dy : 1 - dy + rows, 1 - dx : 1 - dx + cols, k] for k, (dy, dx) in enumerate(_NEIGHBOURS)),
        start=jnp.zeros_like(x[:, :, :, 0]),
    )
