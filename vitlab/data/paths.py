"""Where data lies: in a folder here, or in a bucket ("gs://bucket/folder", also s3:// and az://), by `etils.epath`.

Folders are `epath.Path`; the many files below them are text, because making a path of each costs more than opening it. A data
folder is data of others: nothing outside it is read unless the user says so, and only regular files are opened.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

from etils import epath

from vitlab.config import ConfigError

_BUCKETS = ("gs://", "s3://", "az://", "hf://")  # the schemes that `epath` opens
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def data_path(text: str | os.PathLike[str]) -> epath.Path:
    """The path of a folder or file, of which "~" is the home folder.

    Raises:
      ConfigError: It holds a NUL, is at a scheme that is not read (http://), or is in a bucket, and the package that reads such
        a bucket is not installed.
    """
    _refuse_unreadable_name(os.fspath(text))
    path = epath.Path(text).expanduser()
    if is_remote(path):
        try:
            path.exists()
        except ImportError as error:
            raise ConfigError(f'{path} cannot be opened: {error}; pip install "etils[epath-gcs]" for gs://') from error
    return path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is in a bucket."""
    return os.fspath(path).startswith(_BUCKETS)


def refuse_remote(path: str | os.PathLike[str], what: str) -> None:
    """For files that are read by code which knows only local ones.

    Raises:
      ConfigError: The path is in a bucket; `what` begins the message, which names the remedy.
    """
    if is_remote(path):
        raise ConfigError(
            f"{what} of {os.fspath(path)} can only be read from a local disk: copy the folder (gcloud storage cp -r), or mount the "
            "bucket (gcsfuse), and give that path"
        )


def refuse_undecodable(path: str | os.PathLike[str], what: str) -> None:
    """For files that are read by array_record, which takes paths as text in UTF-8.

    Raises:
      ConfigError: The path has bytes that are no UTF-8; `what` begins the message.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} of {os.fspath(path)!a} cannot be used: the path is not UTF-8; rename the folder") from error


@contextlib.contextmanager
def refuse_unreadable(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Makes one line of what the system refuses while the data at `path` is opened.

    Raises:
      ConfigError: An OSError was raised, such as for a permission that is missing; names the file.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def join(folder: str, name: str) -> str:
    """`name` below `folder`, unless it is absolute or in a bucket itself."""
    return name if is_remote(name) else os.path.join(folder, name)


def read_bytes(path: str, size: int | None = None) -> bytes:
    """The contents of a file, or, if it is here, the first `size` bytes; raises OSError if it cannot be read or is no regular file."""
    if is_remote(path):
        return epath.Path(path).read_bytes()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO that nobody writes to does not wait
    with open(descriptor, "rb") as file:
        _refuse_irregular(path, os.fstat(descriptor))
        return file.read(size)


def size_of(path: str) -> int:
    """Bytes of a file; raises OSError if there is none, or it is no regular file."""
    if is_remote(path):
        return epath.Path(path).stat().length
    status = os.stat(path)
    _refuse_irregular(path, status)
    return status.st_size


class Fence:
    """Keeps what a listing names, or symbolic links lead to, inside one folder."""

    def __init__(self, root: str | os.PathLike[str], *, follow_outside: bool = False):
        """`root` is the folder, here or in a bucket; `follow_outside` lets everything pass that can be a file at all."""
        self.root, self.follow_outside = os.fspath(root), follow_outside
        self._real = os.path.realpath(self.root)
        self._folders: dict[str, str] = {}  # folder -> its real path

    def path_of(self, name: str) -> str:
        """The path of a file or folder that a listing in the root calls `name`, see `join`; files in any bucket may be named.

        Raises:
          ConfigError: It lies outside the root, or no file can have this name.
        """
        _refuse_unreadable_name(name)
        path = join(self.root, name)
        if not is_remote(name):
            self.check(path)
        return path

    def check(self, path: str) -> None:
        """Lets a path pass that lies below the root when ".." and symbolic links are followed.

        Raises:
          ConfigError: It does not, and nothing else was allowed.
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
        """The real path of the folder of a file; it is kept, because a listing has many files of one folder."""
        folder = os.path.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return self._folders[folder]


def files_below(folder: str, fence: Fence) -> Iterator[tuple[str, int]]:
    """Every regular file below a local folder that is not hidden: its path relative to the folder, and its bytes; in no order.

    Symbolic links are followed as far as the fence allows. Links to nothing, and files that are no regular ones, are passed over.

    Raises:
      ConfigError: A folder cannot be read, or a symbolic link leads outside the fence, to itself, or to a folder that is read
        already, as in a loop.
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
    """Kind of the entry, or of the file that it links to; None if it links to nothing."""
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
