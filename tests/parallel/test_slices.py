"""Several TPU slices, of devices that only have what JAX asks them to lay them out."""

import dataclasses

import pytest

from vitlab.config import ConfigError
from vitlab.parallel.mesh import make_mesh, part_of_process


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def slices(*sizes: int) -> list[Device]:
    """Returns the devices of slices of two columns; each host has four devices."""
    places = [(number, row, column) for number, size in enumerate(sizes) for row in range(size // 2) for column in range(2)]
    devices = [Device(i, number, i // 4, (column, row, 0)) for i, (number, row, column) in enumerate(places)]
    return devices[::-1]  # JAX promises no order


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (8, 1), (2, 1), (4, 2)])
def test_slices_lie_along_the_outer_part_of_data_and_no_other_axis_crosses_them(fsdp, tensor):
    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=slices(8, 8))
    assert dict(mesh.shape) == {"data": 16 // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
    numbers = [[device.slice_index for device in group.flat] for group in mesh.devices]
    half = len(numbers) // 2
    assert numbers == [[0] * fsdp * tensor] * half + [[1] * fsdp * tensor] * half


def test_each_process_reads_images_of_its_own(monkeypatch):
    mesh = make_mesh(devices=slices(8, 8, 8))
    parts = []
    for process in range(6):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        parts.append(part_of_process(mesh))
    assert sorted(parts) == [(part, 6) for part in range(6)]


def test_what_does_not_fit_into_a_slice_is_refused():
    with pytest.raises(ConfigError, match="must divide the 8 devices of each slice"):
        make_mesh(fsdp=16, devices=slices(8, 8))
    with pytest.raises(ConfigError, match="every slice must have the same number of devices"):
        make_mesh(devices=slices(8, 4))
