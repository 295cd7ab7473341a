"""Folders in a bucket, gs:// and s3://: whole objects, and writes that happen only where nothing
has changed meanwhile.

An object store has no locks, no renames and no appending. It has this: an object is replaced whole
or not at all, and a write can be made to depend on the version that is there (the generation number
of Google, the ETag of Amazon). A network may fail for a while, so each operation is tried again,
later and later, for as long as its caller has patience.
"""

import asyncio
import contextlib
import dataclasses
import errno
import importlib.util
import logging
import os
import pathlib
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from etils import epath
from etils.epath.backend import fsspec_backend
from typing_extensions import TypeIs

from vitlab.config import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")
RunPath = pathlib.Path | epath.Path  # path of a run folder or of a file in it, local or in a bucket
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # scheme -> package that reads it
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib drops the second slash
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_CREDENTIALS = ("DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_TRANSIENT = {  # errors of gcsfs and s3fs that are no OSError
    *("HttpError", "ClientError", "TransportError", "RefreshError", "ChecksumError", "HTTPClientError", "BotoCoreError"),
    "FSTimeoutError",
}
_REMEDY = {
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
    "s3": "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_UPLOAD_SECONDS = 10.0  # between two writes of a list that grows
_BYTES_A_SECOND = 1 << 17  # a longer list is written less often, so that its writes take little of the network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """The rule by which an operation is tried again."""

    seconds: float  # after which no new attempt begins; 0: one attempt
    attempt: float  # seconds after which an attempt without an answer has failed; gcsfs and s3fs try several times in them
    first: float = 1.0  # seconds between the first two attempts; each later pause is twice as long
    longest: float = 20.0  # seconds of the longest pause


ONCE = Patience(seconds=0.0, attempt=30.0)
PATIENT = Patience(seconds=300.0, attempt=60.0)


def run_path(text: str | os.PathLike[str]) -> RunPath:
    """The path of a run folder, here or in a bucket.

    Raises:
      ConfigError: It is at a scheme where no run can be, has no valid name of a bucket, or the
        package for it is not installed.
    """
    text = os.fspath(text)
    match = _SCHEME.match(text)
    if match is None:
        return pathlib.Path(text)
    scheme = match[1]
    if scheme not in _PACKAGES or not text.startswith(f"{scheme}://"):
        raise ConfigError(f"the run folder {text} must be a local path, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    bucket, _, folder = text.removeprefix(f"{scheme}://").partition("/")
    if not _BUCKET_NAME.fullmatch(bucket) or not folder.strip("/"):
        raise ConfigError(f"the run folder {text} must name a bucket (lower-case letters, digits and ._-) and a folder in it")
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        raise ConfigError(f'the run folder {text} needs {_PACKAGES[scheme]}: pip install "vitlab[cloud]"')
    return epath.Path(text.rstrip("/"))


def in_bucket(path: RunPath) -> TypeIs[epath.Path]:
    """Whether it is in a bucket."""
    return isinstance(path, epath.Path) and "://" in str(path)


def read(path: epath.Path, patience: Patience | None = None) -> bytes:
    """The bytes of an object.

    Raises:
      OSError: It is not there, not to be read by this user, or cannot be reached.
    """
    return _patiently(path, lambda fs, timeout: fs.cat_file(_key(path), timeout=timeout), patience)


def read_version(path: epath.Path, patience: Patience | None = None) -> tuple[bytes, str]:
    """The bytes of an object and the version that has them, for `replace`; raises as `read`."""
    while True:
        before = _patiently(path, lambda fs, timeout: _version(fs.info(_key(path), timeout=timeout)), patience)
        data = read(path, patience)
        if _patiently(path, lambda fs, timeout: _version(fs.info(_key(path), timeout=timeout)), patience) == before:
            return data, before


def write(path: epath.Path, data: bytes, patience: Patience | None = None) -> None:
    """Replaces an object whole; raises as `read`."""
    _patiently(path, lambda fs, timeout: fs.pipe_file(_key(path), data, timeout=timeout), patience)


def replace(path: epath.Path, data: bytes, version: str | None, patience: Patience | None = None) -> str:
    """Writes an object if it still has the version, or, with None, if there is none.

    Returns:
      The new version.

    Raises:
      FileExistsError: It has another version, and other bytes than these, or is not there.
      OSError: As `read`.
    """
    bucket, _, name = _key(path).partition("/")

    def attempt(fs: Any, timeout: float) -> str:
        if _scheme(path) == "gs":
            return fs.call(
                *("POST", f"{fs._location}/upload/storage/v1/b/{bucket}/o"),
                **{
                    "name": name,
                    "uploadType": "media",
                    "ifGenerationMatch": version or "0",
                    "data": data,
                    "json_out": True,
                    "timeout": timeout,
                },
            )["generation"]
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        return fs.call_s3("put_object", Bucket=bucket, Key=name, Body=data, **condition, timeout=timeout)["ETag"]

    try:
        return _patiently(path, attempt, patience)
    except FileNotFoundError as error:
        if version is None:  # there is no such bucket
            raise
        raise FileExistsError(errno.EEXIST, "it was deleted", str(path)) from error  # Amazon's answer
    except FileExistsError:
        # The answer to an attempt that had worked may have been lost.
        with contextlib.suppress(FileNotFoundError):
            there, now = read_version(path, patience)
            if there == data:
                return now
        raise


def exists(path: epath.Path, patience: Patience | None = None) -> bool:
    """Whether there is an object of that name, or one below it; raises OSError as `read`."""
    return _patiently(path, lambda fs, timeout: fs.exists(_key(path), timeout=timeout), patience)


def remove(path: epath.Path, patience: Patience | None = None) -> None:
    """Deletes an object, if there is one, and all below it; raises OSError as `read`."""
    with contextlib.suppress(FileNotFoundError):
        _patiently(path, lambda fs, _: fs.rm(_key(path), recursive=True), patience)


def download(folder: epath.Path, target: pathlib.Path) -> None:
    """Copies all below a name to a local folder; raises OSError as `read`."""
    _patiently(folder, lambda fs, _: fs.get(_key(folder), str(target), recursive=True), PATIENT)


def move(source: epath.Path, target: epath.Path) -> None:
    """Copies all below a name to another name, then deletes it; raises OSError as `read`.

    Where it ends half-way the source is whole, or what is left of it is deleted by the next call.
    """
    _patiently(source, lambda fs, _: fs.copy(_key(source), _key(target), recursive=True), PATIENT)
    remove(source)


class _Background:
    """Work that is done again and again in a thread; what it cannot write waits, which is said
    once.
    """

    def __init__(self, name: str, work: Callable[[], None], pause: Callable[[], float]):
        """`work` may raise OSError; `pause` gives the seconds before it is called again."""
        self._name, self._work, self._pause = name, work, pause
        self._closed, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and does the work once more; what that raises is raised."""
        self._closed.set()
        self._thread.join()
        self._work()

    def _run(self) -> None:
        told = False
        while not self._closed.wait(self._pause()):
            try:
                self._work()
                told = False
            except OSError as error:
                if not told:
                    logger.warning("%s cannot be written (%s); what is new in it waits", self._name, error.strerror or error)
                told = True


class Mirror:
    """A local folder that is copied to a bucket in the background, for files that others write. To
    be used in a `with`.

    Nothing that fails ends a run: it is said in the log.
    """

    def __init__(self, target: epath.Path):
        """Makes `folder`, which is empty, and deleted at the end."""
        self._temporary, self._target = tempfile.TemporaryDirectory(prefix="vitlab-"), target
        self.folder = pathlib.Path(self._temporary.name)
        self._sizes: dict[pathlib.Path, int] = {}  # bytes of the files that the bucket has
        self._background = _Background(str(target), self._upload, lambda: _pause(sum(self._sizes.values())))

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        """Copies what is new, and deletes the local folder."""
        try:
            self._background.close()
        except OSError as error:
            logger.error("%s is not written: %s", self._target, error.strerror or error)
        self._temporary.cleanup()

    def _upload(self) -> None:
        for file in sorted(file for file in self.folder.rglob("*") if file.is_file()):
            data = file.read_bytes()
            if self._sizes.get(file) != len(data):
                write(self._target / file.relative_to(self.folder).as_posix(), data, ONCE)
                self._sizes[file] = len(data)


class Lines:
    """A list of lines in a bucket that grows: kept in memory, and written whole every ten seconds
    in the background.

    Each write depends on the version that this process has written before, so that of two processes
    the later one stays. Where the bucket cannot be reached the lines wait.
    """

    def __init__(self, path: epath.Path, text: str | None = None):
        """Replaces the list by a text; with None it goes on with what is there, without a last line
        that was cut off.

        Raises:
          OSError: The bucket cannot be read, or not be written.
        """
        self._path, self._lock = path, threading.Lock()
        try:
            data, self._version = read_version(path)
        except FileNotFoundError:
            data, self._version = b"", None
        self._data = bytearray(data[: data.rfind(b"\n") + 1] if text is None else text.encode())
        self._written = len(data) if bytes(self._data) == data else -1  # bytes of the object
        if text is not None:
            self.sync(PATIENT)
        self._background = _Background(str(path), self.sync, lambda: _pause(len(self._data)))

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def write(self, text: str) -> None:
        """Adds lines."""
        self._data += text.encode()

    def writelines(self, lines: Iterator[str]) -> None:
        """Adds lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Does nothing: the background writes."""

    def sync(self, patience: Patience | None = None) -> None:
        """Writes what is not yet in the bucket; without patience, in one attempt.

        Raises:
          OSError: It cannot be reached, or another process has written the list.
        """
        with self._lock:
            data = bytes(self._data)
            if len(data) != self._written:
                try:
                    self._version = replace(self._path, data, self._version, patience or ONCE)
                except FileExistsError as error:
                    raise OSError(errno.ESTALE, "another process writes it", str(self._path)) from error
                self._written = len(data)

    def close(self) -> None:
        """Ends the background, and writes what is left; raises as `sync`."""
        self._background.close()


def _pause(size: int) -> float:
    return _UPLOAD_SECONDS + size / _BYTES_A_SECOND


def _key(path: epath.Path) -> str:
    """Name of an object as fsspec knows it, bucket/folder/name."""
    return str(path).partition("://")[2]


def _scheme(path: epath.Path) -> str:
    return str(path).partition("://")[0]


def _version(info: dict[str, Any]) -> str:
    return str(info.get("generation") or info["ETag"])


def _patiently(path: epath.Path, operation: Callable[[Any, float], T], patience: Patience | None) -> T:
    """The result of an operation on the file system of a path; what is no failure of the network is
    raised at once, as OSError.
    """
    patience = patience or PATIENT
    begun, pause, told = time.monotonic(), patience.first, False
    while True:
        try:
            fs = fsspec_backend.fs(path)  # Orbax uses the same file system object, and its cache of folders
            fs.invalidate_cache()
            return operation(fs, patience.attempt)
        except Exception as error:  # gcsfs, s3fs and what they stand on raise errors of many kinds
            lasting = _lasting(path, error)
            if lasting is not None:
                raise lasting from error
            if time.monotonic() - begun + pause > patience.seconds:
                raise OSError(errno.EIO, f"the bucket cannot be reached: {_one_line(error)}", str(path)) from error
            if not told:
                logger.warning("%s cannot be reached (%s); tried again for %d s", path, _one_line(error), patience.seconds)
            told = True
        time.sleep(pause)
        pause = min(2 * pause, patience.longest)


def _lasting(path: epath.Path, error: Exception) -> OSError | None:
    """The error for the user where trying again is of no use; None where the network or the service
    has failed.
    """
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return type(error)(errno.ENOENT, f"there is no such object or bucket (is {path.parts[2]} its name?)", str(path))
    code = str(getattr(error, "code", None) or getattr(error, "errno", None) or "")
    text = _one_line(error)
    if isinstance(error, FileExistsError) or "PreconditionFailed" in text or "pre-conditions you specified" in text:
        return FileExistsError(errno.EEXIST, "it has changed", str(path))
    unknown = code in ("400", "401", "403") or isinstance(error, PermissionError) or text.startswith("Forbidden")
    if unknown or any(kind in _kinds(error) for kind in _CREDENTIALS):
        remedy = f"credentials: {_REMEDY[_scheme(path)]}"
        return PermissionError(errno.EACCES, f"the bucket refuses this user ({text}); {remedy}", str(path))
    if isinstance(error, TypeError | AttributeError | LookupError):
        raise error
    passing = isinstance(error, OSError | asyncio.TimeoutError) or _kinds(error) & _TRANSIENT
    return None if passing else OSError(errno.EINVAL, text, str(path))


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
