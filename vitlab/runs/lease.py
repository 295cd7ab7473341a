"""A run's hold on its folder in a bucket: an object that names the run's process, and that this
process renews again and again.

It is made, renewed and taken over by writes that depend on the version that was seen, so that of
two processes one fails. Whoever finds the name of another process waits for a minute to see whether
that process still renews it; where the process was on this machine, it is asked for at once.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from etils import epath

from vitlab import buckets
from vitlab.config import ConfigError
from vitlab.printable import printable
from vitlab.runs.claim import DELETED, LOCK, TAKEN, Claim

logger = logging.getLogger(__name__)

_RENEWAL_SECONDS = 15.0  # between two renewals
_LEASE_SECONDS = 60.0  # without a renewal, after which another process may take the folder over
_LOOK_SECONDS = 1.0  # between two looks of one who waits


class BucketClaim(Claim):
    """A folder in a bucket that this run writes into. To be used in a `with`.

    A process that is killed leaves its name behind; a run whose renewals fail, as on a dead
    network, stops only once it sees that another process has taken the folder over.
    """

    def __init__(self, path: epath.Path):
        """Knows the folder, without claiming it."""
        super().__init__(path)
        self._folder, self._object, self._name, self._renewals = path, path / LOCK, _this_process(), 0
        self._version: str | None = None  # version of the object that this process wrote; None: not claimed
        self._seen_harm, self._writing = "", threading.Lock()
        self._closed, self._thread = threading.Event(), threading.Thread(target=self._renew_often, daemon=True)

    def __exit__(self, *exc) -> None:
        if self._version is None:
            return
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the next run waits for a minute
            buckets.replace(self._object, b"{}", self._version, buckets.ONCE)

    def lock(self) -> None:
        first, since = None, 0.0  # the version that was found, and when
        while self._version is None:
            try:
                data, version = buckets.read_version(self._object)
            except FileNotFoundError:
                data, version = b"{}", None
            owner = _parsed(data)
            if owner and not _is_dead(owner):
                if first is None and not _is_alive(owner):
                    logger.warning("%s was held by %s; waiting for %d s whether it still is", self.path, _text(owner), _LEASE_SECONDS)
                    first, since = version, time.monotonic()
                if first != version:
                    raise ConfigError(f"another process is training in {self.path}: {_text(owner)}")
                if time.monotonic() - since < _LEASE_SECONDS:
                    time.sleep(_LOOK_SECONDS)
                    continue
            with contextlib.suppress(FileExistsError):  # another process was quicker
                self._version = buckets.replace(self._object, self._content(), version)
        self._thread.start()

    def lost(self) -> bool:
        return bool(self._seen_harm)

    def _harm(self) -> str:
        if self._version is not None:
            self._renew()
        return self._seen_harm

    def _absence(self) -> str:
        return ""

    def _renew(self) -> None:
        """Writes the name anew; what the network keeps from it is left to the next renewal."""
        with self._writing, contextlib.suppress(OSError):
            if self._seen_harm:
                return
            try:
                self._version = buckets.replace(self._object, self._content(), self._version, buckets.ONCE)
                if self.marker is not None and not buckets.exists(self._folder / self.marker, buckets.ONCE):
                    self._seen_harm = DELETED
            except FileExistsError:
                self._seen_harm = TAKEN if buckets.exists(self._object, buckets.ONCE) else DELETED

    def _renew_often(self) -> None:
        while not self._closed.wait(_RENEWAL_SECONDS):
            self._renew()

    def _content(self) -> bytes:
        self._renewals += 1  # so that each renewal has other bytes
        return json.dumps({**self._name, "renewals": self._renewals}).encode()


def _this_process() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "id": uuid.uuid4().hex, **_machine(), "started": _started(os.getpid())}


def _machine() -> dict[str, str]:
    """Names of this start of the machine and of the space in which its processes have numbers;
    empty where the system has none.
    """
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "space": os.readlink("/proc/self/ns/pid")}
    return {}


def _started(process: int) -> str:
    """Time of the process's start in ticks since that of the machine; "" if there is no such
    process.
    """
    with contextlib.suppress(OSError, IndexError):
        status = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if status[0] in "ZX" else status[19]
    return ""


def _parsed(data: bytes) -> dict[str, Any]:
    """The owner that an object names; empty if it names none, as after a run that has ended."""
    with contextlib.suppress(ValueError, RecursionError):
        owner = json.loads(data)
        return owner if isinstance(owner, dict) else {}
    return {}


def _is_here(owner: dict[str, Any]) -> bool:
    machine = _machine()
    return bool(machine) and machine.items() <= owner.items() and isinstance(owner.get("process"), int)


def _is_alive(owner: dict[str, Any]) -> bool:
    return _is_here(owner) and _started(owner["process"]) == owner.get("started")


def _is_dead(owner: dict[str, Any]) -> bool:
    return _is_here(owner) and not _is_alive(owner)


def _text(owner: dict[str, Any]) -> str:
    return printable(f"process {owner.get('process')} on {owner.get('host')}")[:200]
