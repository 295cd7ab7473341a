"""The platform and device that a program traced now will run on."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_assumed: contextvars.ContextVar[str | None] = contextvars.ContextVar("assumed", default=None)


@contextlib.contextmanager
def assume(platform: str) -> Iterator[None]:
    """Traces programs as for this platform within a `with`.

    Such programs are counted or looked at, not run.

    The platform "any" has no kernel, and no form of its own in `vitlab.layers`.
    """
    token = _assumed.set(platform)
    try:
        yield
    finally:
        _assumed.reset(token)


def platform() -> str:
    """The platform, "cpu", "gpu" or "tpu": that of the abstract mesh in force when one compiles for
    a device that is elsewhere.
    """
    if (assumed := _assumed.get()) is not None:
        return assumed
    device = _abstract_device()
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The kind of device, such as "TPU v5 lite", likewise."""
    device = _abstract_device()
    return jax.devices()[0].device_kind if device is None else device.device_kind


def is_elsewhere() -> bool:
    """Whether one compiles, or only asks, for a device that is not here."""
    return _abstract_device() is not None


def _abstract_device():
    return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
