"""Small files: atomic writes, JSON, and files of JSON lines whose last line may be cut off.

Files of a run folder may be in a bucket, see `vitlab.buckets`.
"""

import contextlib
import errno
import glob
import json
import os
import pathlib
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from typing import IO, Any

from vitlab import buckets
from vitlab.buckets import Lines, RunPath, in_bucket

_LEFT_OVER_SECONDS = 600.0  # age from which the writer of a temporary file is taken for dead


def write_atomically(path: RunPath, content: str | bytes) -> None:
    """Replaces a file at once, so that no reader and no crash sees half of it.

    If several processes write the same file, the last one wins. Temporary files of killed writers
    are removed.

    Raises:
      OSError: The file cannot be written; the old file stays, and no temporary file is left.
    """
    if in_bucket(path):
        buckets.write(path, content.encode() if isinstance(content, str) else content)
        return
    remove_leftovers(path, older_than=_LEFT_OVER_SECONDS)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_leftovers(path: RunPath, *, older_than: float = 0.0) -> None:
    """Removes the temporary files that killed writers of a file have left beside it; in a bucket
    there are none.

    Args:
      path: The file that was being written.
      older_than: Least age in seconds; a younger file may belong to a writer at work.
    """
    if in_bucket(path):
        return
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*tmp"):
        with contextlib.suppress(OSError):  # another process was quicker, or it is a folder
            if time.time() - leftover.lstat().st_mtime >= older_than:
                leftover.unlink()


def exists(path: RunPath) -> bool:
    """Whether there is a file or folder of that name.

    Raises:
      OSError: The bucket that it would be in cannot be read.
    """
    return buckets.exists(path) if in_bucket(path) else path.exists()


def remove(path: RunPath) -> None:
    """Removes a file, a link (not its target) or a folder with its content, if there is one.

    Raises:
      OSError: It cannot be removed.
    """
    if in_bucket(path):
        buckets.remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_json(path: RunPath) -> Any:
    """The value in a JSON file.

    Raises:
      OSError: The file cannot be read, or is no regular file.
      ValueError: The text is not UTF-8, not JSON, nested too deeply or has numbers that are too
        long.
    """
    return parse_json(read_bytes(path))


def parse_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: The text is not UTF-8, not JSON, nested too deeply or has numbers that are too
        long.
    """
    try:
        return json.loads(data.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def whole_lines(path: RunPath) -> Iterator[bytes]:
    """The complete lines of a file, without line ends; none if there is no file.

    A last line that was cut off is left out.

    Raises:
      OSError: The file cannot be read, or is no regular file.
    """
    with contextlib.suppress(FileNotFoundError):
        yield from read_bytes(path).split(b"\n")[:-1]


def open_to_append(path: RunPath) -> IO[str] | Lines:
    """Opens a file of lines to append to it, and removes a last line that was cut off.

    Raises:
      OSError: The file cannot be written, or is no regular file.
    """
    if in_bucket(path):
        return Lines(path)
    with contextlib.suppress(FileNotFoundError):
        data = read_bytes(path)
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
    return path.open("a")


def read_bytes(path: RunPath) -> bytes:
    """The bytes of a file.

    Raises:
      OSError: It cannot be read, or is no regular file, but a FIFO or a device, which may never
        end.
    """
    if in_bucket(path):
        return buckets.read(path)
    if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):  # reading a folder gives a clear error
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_bytes()


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a new name in a folder survive a crash of the machine, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
