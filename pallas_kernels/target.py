"""What a program traced now will run on."""

import jax


def platform() -> str:
    """The platform, "cpu", "gpu" or "tpu": that of the abstract mesh in force when one compiles for a device that is elsewhere."""
    device = _abstract_device()
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The kind of device, such as "TPU v5 lite", likewise."""
    device = _abstract_device()
    return jax.devices()[0].device_kind if device is None else device.device_kind


def _abstract_device():
    return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
