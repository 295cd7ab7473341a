"""Paths of data, local or in a bucket ("gs://bucket/folder", also s3:// and az://).

Folders are `etils.epath.Path`; the many files below them are strings, because making a path object
costs more than opening a file. Data folders are untrusted: files outside them are read only if the
user allows it, and only regular files are opened.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

from etils import epath

from vitlab.config import ConfigError

_BUCKETS = ("gs://", "s3://", "az://", "hf://")  # schemes that `epath` opens
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def data_path(text: str | os.PathLike[str]) -> epath.Path:
    """The path of a folder or file, with "~" expanded.

    Raises:
      ConfigError: The text has a NUL or an unsupported scheme (http://), or the package that reads
        its bucket is not installed.
    """
    _refuse_unreadable_name(os.fspath(text))
    path = epath.Path(text).expanduser()
    if is_remote(path):
        try:
            path.exists()
        except ImportError as error:
            raise ConfigError(f'{path} cannot be opened: {error}; pip install "vitlab[cloud]"') from error
    return path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether the path is in a bucket."""
    return os.fspath(path).startswith(_BUCKETS)


def refuse_remote(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a path in a bucket, for code that reads local files only.

    Raises:
      ConfigError: The path is in a bucket; the message begins with `what` and names the remedy.
    """
    if is_remote(path):
        raise ConfigError(
            f"{what} of {os.fspath(path)} can only be read from a local disk: copy the folder (gcloud storage cp -r), or mount the "
            "bucket (gcsfuse), and give that path"
        )


def refuse_undecodable(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a path that is not UTF-8, for array_record, which takes paths as text.

    Raises:
      ConfigError: The path has bytes that are not UTF-8; the message begins with `what`.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} of {os.fspath(path)!a} cannot be used: the path is not UTF-8; rename the folder") from error


@contextlib.contextmanager
def refuse_unreadable(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Turns errors of the operating system on opening the data at `path` into one line.

    Raises:
      ConfigError: An OSError was raised, such as for a missing permission; the message names the
        file.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def join(folder: str, name: str) -> str:
    """The path `name` below `folder`; an absolute or bucket path is returned unchanged."""
    return name if is_remote(name) else os.path.join(folder, name)


def read_bytes(path: str, size: int | None = None) -> bytes:
    """The contents of a file, or the first `size` bytes of a local one.

    Raises OSError if the file is unreadable or no regular file.
    """
    if is_remote(path):
        return epath.Path(path).read_bytes()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO without a writer does not block
    with open(descriptor, "rb") as file:
        _refuse_irregular(path, os.fstat(descriptor))
        return file.read(size)


def size_of(path: str) -> int:
    """Size of a file in bytes; raises OSError if it is missing or no regular file."""
    if is_remote(path):
        return epath.Path(path).stat().length
    status = os.stat(path)
    _refuse_irregular(path, status)
    return status.st_size


class Fence:
    """Confines the paths in a listing, and the targets of symbolic links, to one folder."""

    def __init__(self, root: str | os.PathLike[str], *, follow_outside: bool = False):
        """Takes the folder, local or in a bucket; `follow_outside` turns the check off."""
        self.root, self.follow_outside = os.fspath(root), follow_outside
        self._real = os.path.realpath(self.root)
        self._folders: dict[str, str] = {}  # real path of each folder

    def path_of(self, name: str) -> str:
        """The path of a listed file or folder, see `join`; a file in any bucket is allowed.

        Raises:
          ConfigError: The path lies outside the root, or is no valid path.
        """
        _refuse_unreadable_name(name)
        path = join(self.root, name)
        if not is_remote(name):
            self.check(path)
        return path

    def check(self, path: str) -> None:
        """Checks that a path lies below the root after ".." and symbolic links are resolved.

        Raises:
          ConfigError: The path lies outside the root, and `follow_outside` is off.
        """
        if not (self.follow_outside or self._holds(path)):
            raise ConfigError(
                f"{path} lies outside {self.root}; if that is meant, set data.follow_outside=true (vitlab.data.prepare --follow_outside)"
            )

    def _holds(self, path: str) -> bool:
        if is_remote(self.root):
            return f"{path}/".startswith(self.root.rstrip("/") + "/") and ".." not in path.split("/")
        real = os.path.realpath(path) if os.path.islink(path) else os.path.join(self._real_folder(path), os.path.basename(path))
        return (os.path.normpath(real) + os.sep).startswith(os.path.join(self._real, ""))

    def _real_folder(self, path: str) -> str:
        """The real path of a file's folder, cached because a listing has many files per folder."""
        folder = os.path.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return self._folders[folder]


def files_below(folder: str, fence: Fence) -> Iterator[tuple[str, int]]:
    """Yields each regular file below a local folder, in no order: relative path, size in bytes.

    Hidden files are skipped, as are links to nothing. Symbolic links are followed as far as the
    fence allows.

    Raises:
      ConfigError: A folder cannot be read, or a symbolic link leads outside the fence, to itself,
        or to a folder that was read already, as in a loop.
    """
    pending, seen = [(folder, "")], {os.path.realpath(folder)}
    while pending:
        path, prefix = pending.pop()
        with refuse_unreadable(path), os.scandir(path) as entries:
            for entry in entries:
                status = None if entry.name.startswith(".") else _status(entry)
                if status is None:
                    continue
                if entry.is_symlink():
                    fence.check(entry.path)
                if stat.S_ISREG(status.st_mode):
                    yield prefix + entry.name, status.st_size
                elif stat.S_ISDIR(status.st_mode):
                    real = os.path.realpath(entry.path)
                    if real in seen:
                        raise ConfigError(f"{entry.path} is {real} once more, by a symbolic link that loops or repeats; delete the link")
                    seen.add(real)
                    pending.append((entry.path, f"{prefix}{entry.name}/"))


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Status of the entry, or of the target of a link; None for a link to nothing."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def _refuse_unreadable_name(name: str) -> None:
    if "\0" in name:
        raise ConfigError(f"{name!a} holds a NUL, which no path can")
    if _SCHEME.match(name) and not is_remote(name):
        raise ConfigError(f"{name} cannot be read: give a path here, or one at {', '.join(_BUCKETS)}")


def _refuse_irregular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
