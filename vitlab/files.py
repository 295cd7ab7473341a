"""Small files: atomic writes, JSON, and files of JSON lines whose last line may be cut off."""

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

_LEFT_OVER_SECONDS = 600.0  # age from which the writer of a temporary file is taken for dead


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file at once, so that no reader and no crash sees half of it.

    If several processes write the same file, the last one wins. Temporary files of killed writers
    are removed.

    Raises:
      OSError: The file cannot be written; the old file stays, and no temporary file is left.
    """
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


def remove_leftovers(path: pathlib.Path, *, older_than: float = 0.0) -> None:
    """Removes the temporary files that killed writers of a file have left beside it.

    Args:
      path: The file that was being written.
      older_than: Least age in seconds; a younger file may belong to a writer at work.
    """
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*tmp"):
        with contextlib.suppress(OSError):  # another process was quicker, or it is a folder
            if time.time() - leftover.lstat().st_mtime >= older_than:
                leftover.unlink()


def remove(path: pathlib.Path) -> None:
    """Removes a file, a link (not its target) or a folder with its content, if there is one.

    Raises:
      OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file.

    Raises:
      OSError: The file cannot be read, or is no regular file.
      ValueError: The text is not UTF-8, not JSON, nested too deeply or has numbers that are too
        long.
    """
    return parse_json(_read_regular(path))


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


def whole_lines(path: pathlib.Path) -> Iterator[bytes]:
    """The complete lines of a file, without line ends; none if there is no file.

    A last line that was cut off is left out.

    Raises:
      OSError: The file cannot be read, or is no regular file.
    """
    with contextlib.suppress(FileNotFoundError):
        yield from _read_regular(path).split(b"\n")[:-1]


def open_to_append(path: pathlib.Path) -> IO[str]:
    """Opens a file of lines to append to it, and removes a last line that was cut off.

    Raises:
      OSError: The file cannot be written, or is no regular file.
    """
    with contextlib.suppress(FileNotFoundError):
        data = _read_regular(path)
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
    return path.open("a")


def _read_regular(path: pathlib.Path) -> bytes:
    """Reads a file, but no FIFO or device, whose content may never end."""
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
