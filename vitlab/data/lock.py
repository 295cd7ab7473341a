"""A folder that one process at a time may write to."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator

from vitlab.config import ConfigError

logger = logging.getLogger(__name__)

LOCK = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Locks a local folder for this process; the system releases the lock if the process dies.

    The lock is `flock` on a file `.lock` in the folder, which is deleted at the end. A file system
    without locks causes a warning.

    Raises:
      ConfigError: Another process or thread holds the lock, or the folder is not writable.
    """
    path = os.path.join(os.fspath(folder), LOCK)
    descriptor = _acquire(path, folder)
    try:
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder, and the file with it, may be deleted
            os.unlink(path)
        os.close(descriptor)


def _acquire(path: str, folder: str | os.PathLike[str]) -> int:
    """Opens and locks the file; opens it again if its owner has deleted it meanwhile.

    A lock on a deleted file protects nothing.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(f"{os.fspath(folder)} is not writable: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ConfigError(f"{os.fspath(folder)} is being written by {owner}; wait for it, or give another folder") from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise ConfigError(f"{os.fspath(folder)} cannot be locked: {error.strerror}") from error
            logger.warning("%s cannot be locked (%s); make sure that nothing else writes to it", os.fspath(folder), error.strerror)
            return descriptor
        if _is_still(path, descriptor):
            os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)


def _is_still(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
