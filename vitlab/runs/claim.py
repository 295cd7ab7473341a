"""A run's claim on its folder: only one run writes into it, even if the folder is moved meanwhile.

A run never writes into another run's folder that took the place of its own.
"""

import abc
import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import socket
import time
import uuid

from vitlab.buckets import RunPath
from vitlab.config import ConfigError
from vitlab.parallel import distributed
from vitlab.printable import printable

logger = logging.getLogger(__name__)

LOCK = ".lock"  # name of the file that the run locks; it holds the name of the run's process
_NO_LOCKS = "locks do not work on this file system (%s): a second run in %s would not be refused, but end this one"
DELETED = "it was deleted; nothing more is saved"
TAKEN = "another process has taken it over; nothing more is saved"
_LOOK_SECONDS = 1.0  # least time between two looks at the folder


class FolderLostError(RuntimeError):
    """The run folder was moved, deleted or taken over; nothing was written into another run's."""


class Claim(abc.ABC):
    """A folder that this run writes into; to be used in a `with`."""

    root: RunPath  # path of the folder to write into

    def __init__(self, path: RunPath):
        """Keeps the path; nothing is locked yet."""
        self.path = path  # as the user wrote it
        self.root = path
        self.marker: str | None = None  # name of a file whose absence shows that the folder is being deleted

    def __enter__(self) -> "Claim":
        return self

    @abc.abstractmethod
    def __exit__(self, *exc) -> None: ...

    @abc.abstractmethod
    def lock(self) -> None:
        """Locks the folder against other runs.

        Raises:
          ConfigError: Another process has locked it.
          OSError: The lock cannot be written.
        """

    @abc.abstractmethod
    def lost(self) -> bool:
        """Whether the folder or its place is no longer this run's; takes no time."""

    def check(self) -> None:
        """Checks the folder before a write; called by all processes.

        Raises:
          FolderLostError: The folder is deleted or taken over, or its path leads elsewhere and
            writing would follow the path; on all processes.
        """
        self._raise(self._harm() or ("" if self.root != self.path else self._absence()))

    def check_place(self) -> None:
        """Checks the folder and its place at the end of the run; called by all processes.

        Raises:
          FolderLostError: As in `check`, or the folder, though unharmed, is no longer where the
            user put it; on all processes.
        """
        self._raise(self._harm() or self._absence())

    def shown(self, text: str) -> str:
        """A message in which the folder has the user's name for it."""
        return text.replace(str(self.root), str(self.path))

    def _raise(self, reason: str) -> None:
        reason = distributed.first_error(reason)
        if reason:
            raise FolderLostError(f"the run folder {self.path} is no longer this run's: {reason}")

    @abc.abstractmethod
    def _harm(self) -> str:
        """The reason why nothing can be written into the folder itself; "" if there is none."""

    @abc.abstractmethod
    def _absence(self) -> str:
        """The reason why the path does not lead to the folder; "" if it does."""


class FolderClaim(Claim):
    """A folder on a file system that this run writes into; to be used in a `with`.

    The system releases the claim when the process dies. On Linux files are written to the folder
    itself and not to its path, so that it can be moved at any moment without harm. Elsewhere the
    path is checked before each save.
    """

    def __init__(self, path: pathlib.Path):
        """Opens the folder, which exists, without locking it."""
        super().__init__(path)
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._lock: int | None = None
        self._name = b""  # identity of this process, which the lock's file holds
        self._looked, self._seen_lost = time.monotonic(), False
        itself = pathlib.Path(f"/proc/self/fd/{self._folder}")
        self._follows = itself.is_dir()  # whether the folder is found wherever it is moved; not on macOS
        if self._follows:
            self.root = itself

    def __exit__(self, *exc) -> None:
        for descriptor in (self._lock, self._folder):
            if descriptor is not None:
                os.close(descriptor)

    def lock(self) -> None:
        self._lock = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=self._folder)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = printable(os.pread(self._lock, 200, 0).decode(errors="replace").strip())
            raise ConfigError(f"another process is training in {self.path}" + (f": {other}" if other else "")) from error
        except OSError as error:
            logger.warning(_NO_LOCKS, error.strerror, self.path)
        self._name = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}\n".encode()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, self._name, 0)

    def lost(self) -> bool:
        """As in `Claim`; looks once a second at most."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked, self._seen_lost = now, bool(self._harm() or self._absence())
        return self._seen_lost

    def _harm(self) -> str:
        if self._is_deleted():
            return DELETED
        if self._lock is None or not self._name:
            return ""
        try:
            lock = os.open(LOCK, os.O_RDONLY, dir_fd=self._folder)
        except FileNotFoundError:
            return self._lock_again()
        except OSError:  # other errors of the file system show up in the writes
            return ""
        try:
            own = os.path.samestat(os.fstat(lock), os.fstat(self._lock)) and os.pread(lock, 200, 0) == self._name
        finally:
            os.close(lock)
        return "" if own else TAKEN

    def _is_deleted(self) -> bool:
        try:
            if os.fstat(self._folder).st_nlink == 0:
                return True
            if self.marker is not None:
                os.stat(self.marker, dir_fd=self._folder)
        except OSError as error:  # other errors of the file system show up in the writes
            return error.errno in (errno.ENOENT, errno.ESTALE)
        return False

    def _lock_again(self) -> str:
        """Makes the lock's file anew if it alone was deleted, not the whole folder."""
        try:
            lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self._folder)
        except FileExistsError:
            return TAKEN
        except FileNotFoundError:
            return DELETED
        except OSError:
            return ""
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(lock, self._name, 0)
        old, self._lock = self._lock, lock
        if old is not None:
            os.close(old)
        return ""

    def _absence(self) -> str:
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._folder)):
                return ""
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            return ""
        now = f" to {os.readlink(self.root)}" if self._follows else ""
        return f"it was moved{now}; the same command with that --workdir goes on with it"
