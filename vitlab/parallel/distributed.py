"""Many processes, one per host or one per GPU: how they connect, and how they agree.

Every process runs the same program. All processes must call the functions that say so, in the same
order. With one process nothing is sent.
"""

import importlib.util
import json
import logging
import os
import pathlib
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vitlab.config import ConfigError
from vitlab.parallel.mesh import batch_sharding, make_mesh, replicated

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TEXT_SIZE = 1000  # size of a message between processes, in bytes
_RANKS = {"SLURM": ("SLURM_NTASKS", "SLURM_PROCID"), "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the flags of `initialize`."""
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, where the launcher does not tell")
    parser.add_argument("--num_processes", type=int, help="of the run, where the launcher does not tell")
    parser.add_argument("--process_id", type=int, help="of this process, from 0, where the launcher does not tell")


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the run, if there are any, before anything is computed.

    With flags, missing numbers are taken from SLURM or Open MPI. Without flags, JAX finds the
    processes under SLURM's `srun`, Open MPI's `mpirun` and on a Cloud TPU; anywhere else the
    process is alone.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: Number of processes of the run.
      process_id: Number of this process, from 0.

    Raises:
      ConfigError: The flags are incomplete, or the other processes cannot be found.
    """
    ranks = _launched(os.environ)
    if coordinator is not None or num_processes is not None or process_id is not None:
        count, index = ranks or (None, None)
        count, index = (given if given is not None else told for given, told in ((num_processes, count), (process_id, index)))
        if coordinator is None or count is None or index is None:
            raise ConfigError("--coordinator=HOST:PORT needs --num_processes and --process_id beside it, and they need it")
        if not 0 <= index < count:
            raise ConfigError(f"--process_id={index} must be in [0, --num_processes={count})")
        flags: dict[str, Any] = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
        if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
            flags["local_device_ids"] = [int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])]  # JAX reads only Open MPI 4's number itself
        _join(flags)
    elif ranks is not None and ranks[0] > 1:
        if "OMPI_COMM_WORLD_SIZE" in os.environ and "OMPI_MCA_orte_hnp_uri" not in os.environ:
            raise ConfigError("Open MPI 5 does not say where process 0 is: add --coordinator=HOST:PORT, a free port of its host")
        _join({})
    elif _on_cloud_tpu():
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError, OSError) as error:
            logger.warning("this TPU says nothing of other hosts (%s)", " ".join(str(error).split())[:200])
        if jax.process_count() > 1 and not jax.distributed.is_initialized():
            raise ConfigError("this is one host of several: give --coordinator, --num_processes and --process_id")


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def on_first(fn: Callable[[], T]) -> T | None:
    """Calls `fn` on process 0 while the others wait; all processes must call this.

    Raises:
      ConfigError: On all processes, if process 0 raised it.
    """
    return everywhere(fn if is_first() else lambda: None)


def everywhere(fn: Callable[[], T]) -> T:
    """Calls `fn` on every process; all processes must call this.

    Raises:
      ConfigError: On all processes, if one of them raised it.
    """
    value, error = None, None
    try:
        value = fn()
    except ConfigError as raised:
        error = raised
    message = first_error("" if error is None else str(error))
    if message:
        raise error or ConfigError(message)
    return value  # type: ignore[return-value]


def first_error(message: str) -> str:
    """Returns the first message that is not empty, with its process.

    All processes must call this.
    """
    if jax.process_count() == 1:
        return message
    text = np.frombuffer(message.encode()[:_TEXT_SIZE].ljust(_TEXT_SIZE, b"\0"), np.uint8)
    texts = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in np.asarray(multihost_utils.process_allgather(text))]
    return next((f"process {i}: {text}" for i, text in enumerate(texts) if text), "")


def from_first(value: T) -> T:
    """Returns process 0's JSON value; all processes must call this."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    sent = np.zeros(size, np.uint8)
    sent[:] = data if is_first() else 0
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))))


def check_same(what: str, value: Any) -> None:
    """Refuses a JSON value that differs from process 0's; all processes must call this.

    Raises:
      ConfigError: On all processes, if the value differs on one of them.
    """
    text = json.dumps(value, sort_keys=True)
    message = first_error("" if from_first(text) == text else f"has another {what} than process 0")
    if message:
        raise ConfigError(message)


class Vote:
    """Agreement of all processes, between steps, on whether to stop.

    The answer is yes once one process was asked to stop. Each call answers the question of the call
    before, so that no process waits for another beyond the step that they compute together.
    """

    def __init__(self, wish: Callable[[], bool]):
        """Creates the vote.

        Args:
          wish: Says whether this process was asked to stop.
        """
        self._wish, self._agreed, self._pending = wish, False, None
        if jax.process_count() > 1:
            mesh = make_mesh()
            self._sharding = batch_sharding(mesh)
            self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def __call__(self) -> bool:
        """Returns whether all processes stop; all processes must call this."""
        if jax.process_count() == 1:
            return self._wish()
        if not self._agreed:
            previous, wishes = self._pending, np.full(jax.local_device_count(), self._wish())
            self._pending = self._any(jax.make_array_from_process_local_data(self._sharding, wishes))
            self._agreed = previous is not None and bool(previous)
        return self._agreed


def _launched(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Returns the number of processes and this process's number, as SLURM or Open MPI give them."""
    for count, index in _RANKS.values():
        if count in environment and index in environment and ("SLURM" not in count or "SLURM_STEP_NODELIST" in environment):
            return int(environment[count]), int(environment[index])
    return None


def _on_cloud_tpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    devices = any(pathlib.Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    return devices and importlib.util.find_spec("libtpu") is not None and (not platforms or "tpu" in platforms)


def _join(arguments: Mapping[str, Any]) -> None:
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes of the run do not find each other: {' '.join(str(error).split())[:300]}") from error
