"""Buckets on the loopback: Google's by gcp-storage-emulator, Amazon's by moto, each in a process.

`python -m tests.emulator PORT FOLDER` serves Google's API of the objects in FOLDER, where they
outlive the process, so that a network that is dead for a while is a process that is killed and
started again.
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus

from tests.processes import SECONDS

BUCKET = "pictures"


class Emulator:
    """Google's objects on a port of the loopback. To be used in a `with`."""

    def __init__(self, folder: pathlib.Path):
        self.port, self._folder = free_port(), folder
        self._process: subprocess.Popen | None = None
        address = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_CLOUD_PROJECT": "test",
        }

    def __enter__(self) -> "Emulator":
        self.start()
        return self

    def __exit__(self, *exc) -> None:
        self.stop()

    def folder_of(self, path) -> pathlib.Path:
        """Returns the local folder that holds the objects below a path."""
        return self._folder / ".cloudstorage" / str(path).removeprefix("gs://")

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.emulator", str(self.port), str(self._folder)]
        env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def stop(self) -> None:
        """Ends the process at once; requests are refused until it is started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=SECONDS)


@contextlib.contextmanager
def moto() -> Iterator[dict[str, str]]:
    """Serves Amazon's objects; gives the environment that leads there."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        yield {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"} | dict.fromkeys(names, "test")
    finally:
        process.kill()
        process.wait(timeout=SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nothing answers at port {port}")


def _obeying_preconditions(insert):
    """Returns an upload that obeys ifGenerationMatch; requests are served one after the other."""

    def guarded(request, response, storage, *args, **options):
        if request.data is None:
            request._data = b""  # otherwise the emulator fails on an object without bytes
        wanted = request.query.get("ifGenerationMatch", [None])[0]
        if wanted is not None:
            name = (request.query.get("name") or [None])[0] or request.data["meta"]["name"]
            if _generation(storage, request.params["bucket_name"], name) != wanted:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        insert(request, response, storage, *args, **options)

    return guarded


def _telling_generation(download):
    """Returns a download whose answer has the generation of the object, as TensorStore needs."""

    def told(request, response, storage, *args, **options):
        download(request, response, storage, *args, **options)
        response["x-goog-generation"] = _generation(storage, request.params["bucket_name"], request.params["object_id"])

    return told


def _generation(storage, bucket: str, name: str) -> str:
    from gcp_storage_emulator.exceptions import NotFound

    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"


def _serve(port: int, folder: str) -> None:
    """Serves with what the emulator lacks: conditions of uploads, and generations of downloads."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    guarded = {objects.insert: _obeying_preconditions(objects.insert)}
    guarded |= {handler: _telling_generation(handler) for handler in (objects.get, objects.download)}
    for _, handlers in server.HANDLERS:
        handlers |= {method: guarded.get(handler, handler) for method, handler in handlers.items()}
    server.RequestHandler.wbufsize = -1  # an answer in one packet, for speed
    server.create_server("127.0.0.1", port, data_dir=folder, default_bucket=BUCKET).run()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
