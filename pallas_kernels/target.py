"""What a program traced now will run on."""

import jax


def platform() -> str:
    """The platform, "cpu", "gpu" or "tpu": that of the abstract mesh in force when one compiles for a device that is elsewhere."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform
