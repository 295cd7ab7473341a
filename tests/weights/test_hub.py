"""Addresses of the hub, with the library that fetches them replaced."""

import sys
import types

import pytest

from vitlab.weights.hub import beside, download


class EntryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(EntryNotFoundError):
    pass


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """What was asked of the hub, which has a sharded checkpoint in owner/sharded and one file in
    owner/one.
    """
    asked = []
    index = '{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}'
    held = {
        "owner/sharded": {"model.safetensors.index.json": index, "x-1.safetensors": "", "x-2.safetensors": ""},
        "owner/one": {"model.safetensors": "", "sub/other.safetensors": ""},
    }

    def hf_hub_download(name, file, *, revision=None):
        asked.append((name, file, revision))
        if name == "owner/offline":
            raise LocalEntryNotFoundError
        if file not in held.get(name, {}):
            raise EntryNotFoundError
        (path := tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(held[name][file])
        return str(path)

    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    hub.hf_hub_download = hf_hub_download
    errors.EntryNotFoundError, errors.LocalEntryNotFoundError = EntryNotFoundError, LocalEntryNotFoundError
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_an_address_may_name_a_revision_and_a_file(fetched):
    assert download("hf://owner/one").name == "model.safetensors"
    assert download("hf://owner/one@abc/sub/other.safetensors").name == "other.safetensors"
    assert fetched[-1] == ("owner/one", "sub/other.safetensors", "abc")


def test_all_files_of_an_index_are_fetched(fetched):
    assert download("hf://owner/sharded@v1").name == "model.safetensors.index.json"
    assert fetched[-2:] == [("owner/sharded", f"x-{i}.safetensors", "v1") for i in (1, 2)]


def test_a_file_beside_weights_is_found_in_their_folder_or_repository(fetched, tmp_path):
    assert beside("hf://owner/one@v1/model.safetensors", ("tokenizer.json", "sub/other.safetensors")).name == "other.safetensors"
    assert fetched[-2:] == [("owner/one", "tokenizer.json", "v1"), ("owner/one", "sub/other.safetensors", "v1")]
    (tmp_path / "spiece.model").touch()
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        assert beside(str(weights), ("tokenizer.json", "spiece.model")) == tmp_path / "spiece.model"
    assert beside("hf://owner/one", ("absent",)) is beside(str(tmp_path), ("absent",)) is None


@pytest.mark.parametrize("address", ["hf://owner", "hf://", "hf:///x", "hf://owner/@x"])
def test_an_address_of_another_form_is_refused(fetched, address):
    with pytest.raises(ValueError, match=f"{address} must be hf://owner/name"):
        download(address)
    assert not fetched


@pytest.mark.usefixtures("fetched")
def test_what_the_hub_has_not_and_what_cannot_be_reached_are_said_with_the_remedy():
    with pytest.raises(ValueError, match=r"hf://owner/one/absent.bin has no file absent.bin: name one of its files, hf://owner/one/FILE"):
        download("hf://owner/one/absent.bin")
    with pytest.raises(OSError, match="cannot be reached, and its cache here has no model.safetensors: connect once"):
        download("hf://owner/offline")


def test_without_the_extra_the_error_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"vitlab\[hub\]"):
        download("hf://owner/one")
