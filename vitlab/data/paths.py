"""Where data lies: in a folder here, or in a bucket ("gs://bucket/folder", also s3:// and az://), by `etils.epath`.

Folders are `epath.Path`; the many files below them are text, because making a path of each costs more than opening it.
"""

import os

from etils import epath

from vitlab.config import ConfigError


def data_path(text: str | os.PathLike[str]) -> epath.Path:
    """The path of a folder or file, of which "~" is the home folder.

    Raises:
      ConfigError: It is in a bucket, and the package that reads such a bucket is not installed.
    """
    path = epath.Path(text).expanduser()
    if is_remote(path):
        try:
            path.exists()
        except ImportError as error:
            raise ConfigError(f'{path} cannot be opened: {error}; pip install "etils[epath-gcs]" for gs://') from error
    return path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is in a bucket."""
    return "://" in os.fspath(path)


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


def join(folder: str, name: str) -> str:
    """`name` below `folder`, unless it is absolute or in a bucket itself."""
    return name if is_remote(name) else os.path.join(folder, name)


def read_bytes(path: str) -> bytes:
    """The contents of a file; raises OSError if it cannot be read."""
    if is_remote(path):
        return epath.Path(path).read_bytes()
    with open(path, "rb") as file:
        return file.read()


def size_of(path: str) -> int:
    """Bytes of a file; raises OSError if there is none."""
    return epath.Path(path).stat().length if is_remote(path) else os.stat(path).st_size
