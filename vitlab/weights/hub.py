"""Checkpoints of the Hugging Face hub by address, in its local cache once they are there."""

import pathlib
import re
from collections.abc import Sequence

from vitlab.weights.shards import INDEX_SUFFIX, shards_of

_ADDRESS = re.compile(r"hf://(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
# Files that hold the weights where an address names none, the first that there is.
_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)


def beside(source: str, files: Sequence[str]) -> pathlib.Path | None:
    """The first of some files that lies beside weights, in their folder or in their repository on
    the hub; None where none does.

    Raises:
      ImportError, OSError: See `download`.
    """
    if not source.startswith("hf://"):
        path = pathlib.Path(source)
        folder = path if path.is_dir() else path.parent
        return next((folder / name for name in files if (folder / name).is_file()), None)
    match = _ADDRESS.fullmatch(source)
    if match is None:
        return None
    revision = f"@{match['revision']}" if match["revision"] else ""
    for name in files:
        try:
            return download(f"hf://{match['name']}{revision}/{name}")
        except ValueError:  # the repository has no such file
            continue
    return None


def download(address: str) -> pathlib.Path:
    """The local copy of `hf://owner/name[@revision][/file]`; of an index, the index, with its
    shards beside it.

    Raises:
      ValueError: The address is of another form, or the repository has no file of weights that is
        known.
      ImportError: huggingface_hub is missing.
      OSError: It cannot be reached, and there is no copy.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"{address} must be hf://owner/name, with @revision and /file behind it if needed")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(f'{address} needs huggingface_hub: pip install "vitlab[hub]"') from error
    name, revision, file = match["name"], match["revision"], match["file"]
    for candidate in (file,) if file else _FILES:
        try:
            path = pathlib.Path(hf_hub_download(name, candidate, revision=revision))
        except LocalEntryNotFoundError as error:
            remedy = "connect once, or give the path of a file that you have"
            raise OSError(f"{address}: the hub cannot be reached, and its cache here has no {candidate}: {remedy}") from error
        except EntryNotFoundError:
            continue
        if candidate.endswith(INDEX_SUFFIX):
            folder = candidate.rpartition("/")[0]
            for shard in shards_of(path):
                hf_hub_download(name, f"{folder}/{shard}" if folder else shard, revision=revision)
        return path
    raise ValueError(f"{address} has no file {file or ', '.join(_FILES)}: name one of its files, hf://{name}/FILE")
