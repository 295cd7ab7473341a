"""Worker processes of the input pipeline, which compute batches in turn.

They survive signals meant for the run, but never the run itself. Batches travel in anonymous memory
whose descriptor goes through a socket, so that nothing is left on the machine when run and workers
are killed at once. Grain's own workers use named shared memory and named semaphores, which then
stay in /dev/shm.
"""

import faulthandler
import mmap
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import util
from typing import Any

import cloudpickle
import numpy as np

from vitlab.signals import WARNINGS

Arrays = dict[str, np.ndarray]

_SECONDS = 30  # seconds between a signal to run and workers and the workers' own exit
_AHEAD = 2  # batches requested from each worker before the first is taken, besides those in its own pipeline
_ALIGNMENT = 64  # bytes; arrays begin at multiples of it
_HEADER = struct.Struct("<Q")  # length of a message in bytes
_HAS_ANONYMOUS_FILES = hasattr(os, "memfd_create")  # Linux only; elsewhere pixels go through the socket, which is slower


class Workers(Iterator[Arrays]):
    """Batches number 0, 1, 2, ... of a pipeline, number i from worker i % count; to be closed."""

    def __init__(self, make: Callable[[int, int], Iterator[Arrays]], count: int):
        """Starts `count` processes.

        `make(index, count)` gives the batches of worker `index`: number index, index + count, ...
        """
        task = cloudpickle.dumps(make)  # pickles functions that plain pickle cannot, as Grain does
        self._turn = 0
        self._sockets: list[socket.socket] = []
        self._processes: list[Any] = []
        util.Finalize(self, _kill, (self._processes, self._sockets), exitpriority=1)  # runs before multiprocessing waits for the processes
        context = multiprocessing.get_context("spawn")
        for index in range(count):
            here, there = socket.socketpair()
            process = context.Process(target=_work, args=(there, task, index, count), name=f"vitlab-data-{index}", daemon=True)
            process.start()
            there.close()
            self._sockets.append(here)
            self._processes.append(process)
            here.sendall(b"." * _AHEAD)

    def __next__(self) -> Arrays:
        """Returns the next batch.

        Raises:
          RuntimeError: The worker died. Errors of a worker are raised here, with its traceback as a
            note.
          ValueError: The workers are closed.
        """
        if not self._processes:
            raise ValueError("the workers are closed")
        worker, process = self._sockets[self._turn], self._processes[self._turn]
        multiprocessing.connection.wait([worker, process.sentinel])
        try:
            batch = _receive(worker)
            if isinstance(batch, BaseException):
                raise batch
            worker.sendall(b".")
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            process.join()
            raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {process.exitcode}") from error
        self._turn = (self._turn + 1) % len(self._processes)
        return batch

    def close(self) -> None:
        """Ends the processes; may be called twice."""
        _kill(self._processes, self._sockets)


def _kill(processes: list[Any], sockets: list[socket.socket]) -> None:
    """Kills the workers; they hold only anonymous memory, which is freed with them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for one in sockets:
        one.close()
    processes.clear()
    sockets.clear()


def _work(run: socket.socket, task: bytes, index: int, count: int) -> None:
    """Main function of a worker: sends a batch for each byte that it receives."""
    _outlive_signals_but_not_the_run()
    try:
        batches = cloudpickle.loads(task)(index, count)
        while run.recv(1):
            _send(run, next(batches))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the run has ended
    except BaseException as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        _send(run, error)


def _outlive_signals_but_not_the_run() -> None:
    """Makes a worker process survive signals, but not the run; called first in the worker.

    A launcher, or Ctrl-C in a terminal, signals the workers along with the run; they must live
    until the run has saved. A killed run leaves no worker behind. SIGQUIT writes the stacks of all
    threads to stderr.
    """
    for number in (signal.SIGINT, *WARNINGS):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    faulthandler.register(signal.SIGQUIT)
    threading.Thread(target=_end_with_parent, name="vitlab-parent", daemon=True).start()


def _end_later(number: int, frame) -> None:
    timer = threading.Timer(_SECONDS, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _send(run: socket.socket, message: Any) -> None:
    """Sends a batch with its arrays in anonymous memory, or any other object pickled."""
    descriptors, places = [], None
    if _HAS_ANONYMOUS_FILES and isinstance(message, dict):
        descriptor, places = _to_anonymous_memory(message)
        descriptors.append(descriptor)
    try:
        payload = pickle.dumps(message if places is None else places)
        socket.send_fds(run, [_HEADER.pack(len(payload))], descriptors)
        run.sendall(payload)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _receive(worker: socket.socket) -> Any:
    """The object that `_send` sent; raises EOFError when the worker has ended."""
    header, descriptors, _, _ = socket.recv_fds(worker, _HEADER.size, 1)
    header += _receive_bytes(worker, _HEADER.size - len(header)) if header else b""
    if not header:
        raise EOFError
    message = pickle.loads(_receive_bytes(worker, *_HEADER.unpack(header)))
    return _from_anonymous_memory(descriptors[0], message) if descriptors else message


def _receive_bytes(worker: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = worker.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return bytes(data)


def _to_anonymous_memory(arrays: Arrays) -> tuple[int, dict[str, tuple[int, tuple[int, ...], str]]]:
    """Copies arrays into an anonymous file.

    Returns:
      The file's descriptor, and offset, shape and dtype of each array.
    """
    places, end = {}, 0
    for name, array in arrays.items():
        places[name] = (end, array.shape, array.dtype.str)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    descriptor = os.memfd_create("vitlab-batch", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, max(end, 1))
    for name, copy in _from_anonymous_memory(descriptor, places, close=False).items():
        copy[...] = arrays[name]
    return descriptor, places


def _from_anonymous_memory(descriptor: int, places: dict[str, tuple[int, tuple[int, ...], str]], *, close: bool = True) -> Arrays:
    """The arrays as views of the file; its memory is freed with the last of them."""
    memory = mmap.mmap(descriptor, 0)
    if close:
        os.close(descriptor)
    return {name: np.ndarray(shape, dtype, memory, offset) for name, (offset, shape, dtype) in places.items()}
