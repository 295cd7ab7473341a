"""Selective state-space models (Mamba, Gu and Dao, arXiv:2312.00752, section 3) as layers: their
parameters, and the four orders in which VMamba reads a map.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.selective_scan import selective_scan
from vitlab.layers.initial import ones_init, step_bias, uniform
from vitlab.layers.linear import Linear
from vitlab.layers.roles import declare


class SelectiveScan(nnx.Module):
    """Selective scans of sequences of `dim` channels, for several groups that share nothing.

    `project` makes of each token the numbers that control the scan, and is the same in any order of
    the tokens; the call scans. At the start, the states of a channel decay at the rates 1, 2, ...,
    steps are about 0.001 to 0.1, and the factor of a token in its own result is 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        groups: int = 1,  # orders of the tokens, with parameters of their own
        state_dim: int,  # numbers that a channel remembers
        rank: int,  # numbers from which the steps are made
        implementation: str | None = None,  # a key of selective_scan.IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.groups, self.state_dim, self.rank, self.implementation = groups, state_dim, rank, implementation
        self.x_proj = Linear(dim, groups * (rank + 2 * state_dim), use_bias=False, dtype=dtype, rngs=rngs)
        self.dt_weight = nnx.Param(uniform(rank**-0.5)(rngs.params(), (groups, dim, rank)))
        self.dt_bias = declare(nnx.Param(step_bias(0.001, 0.1)(rngs.params(), (groups, dim))), "dynamics")
        decays = np.broadcast_to(np.log(np.arange(1, state_dim + 1, dtype=np.float32)), (groups, dim, state_dim))
        self.a_log = declare(nnx.Param(jnp.asarray(decays)), "dynamics")
        self.skip = declare(nnx.Param(ones_init(rngs.params(), (groups, dim))), "dynamics")

    def project(self, x: Float[Array, "*b dim"]) -> Float[Array, "*b groups controls"]:
        """Returns what controls the scan of each group: rank + 2 * state_dim numbers a token."""
        controls = self.x_proj(x)
        return controls.reshape(*x.shape[:-1], self.groups, -1)

    def __call__(
        self,
        x: Float[Array, "b groups n dim"],
        controls: Float[Array, "b groups n controls"],
        *,
        first: int = 0,
        reverse: bool = False,
    ) -> Float[Array, "b groups n dim"]:
        """Scans the sequences of some groups, the first of which is `first`."""
        part = slice(first, first + x.shape[1])
        steps, b, c = jnp.split(controls, (self.rank, self.rank + self.state_dim), axis=-1)
        return selective_scan(
            x,
            jnp.einsum("bgnr,gdr->bgnd", steps, self.dt_weight[...][part].astype(steps.dtype)),
            -jnp.exp(self.a_log[...][part]),
            b,
            c,
            skip=self.skip[...][part],
            dt_bias=self.dt_bias[...][part],
            reverse=reverse,
            implementation=self.implementation,
        )


def cross_scan(scan: SelectiveScan, x: Float[Array, "b h w dim"]) -> Float[Array, "b h w dim"]:
    """Sums the scans of a map in the four orders of VMamba (arXiv:2401.10166, section 4.2).

    The groups of `scan` read by rows, by columns, by rows backwards and by columns backwards.
    """
    b, h, w, dim = x.shape
    tokens, controls = jnp.stack([_rows(x), _columns(x)], 1), scan.project(x)
    forward, backward = (
        scan(tokens, jnp.stack([_rows(controls[..., i, :]), _columns(controls[..., i + 1, :])], 1), first=i, reverse=i > 0) for i in (0, 2)
    )
    y = forward + backward
    return y[:, 0].reshape(x.shape) + y[:, 1].reshape(b, w, h, dim).swapaxes(1, 2)


def _rows(x: Float[Array, "b h w d"]) -> Float[Array, "b n d"]:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _columns(x: Float[Array, "b h w d"]) -> Float[Array, "b n d"]:
    return _rows(x.swapaxes(1, 2))
