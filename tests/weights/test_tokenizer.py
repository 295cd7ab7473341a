"""Vocabularies against their definition: byte-pair encoding in a few lines, and SentencePiece."""

import gzip
import io
import itertools
import json
import re

import numpy as np
import pytest

from vitlab.models.text_tower import TextConfig, text_config_of
from vitlab.weights.tokenizer import clean_for_clip, clean_for_siglip, find_vocabulary, read_tokenizer

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "d o", "do g</w>", "p h", "o t", "ph ot", "phot o</w>", "o f</w>", "a n"]
SIZE = 512 + len(MERGES) + 2
CLIP = TextConfig(dim=8, depth=1, num_heads=1, out_dim=8, vocab_size=SIZE, length=12)
SENTENCES = ["a photo of the cat", "the dog and the cat", "this is a dog on a photo of a street", "many cats of the town sleep"]
TEXTS = ["A photo  of the cat", "the dog's 12 cats &amp; dogs!", "Käse", "", "a photo of the dog and of the cat and of the dog again"]


def letters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def vocabulary():
    words = [*letters().values(), *(f"{c}</w>" for c in letters().values()), *(m.replace(" ", "") for m in MERGES)]
    return {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def by_definition(text):
    """Merges the pair that comes first in the list, until none is left."""
    ranks, out = {tuple(m.split()): i for i, m in enumerate(MERGES)}, []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+", clean_for_clip(text)):
        parts = [letters()[b] for b in word.encode()]
        parts[-1] += "</w>"
        while pairs := [p for p in itertools.pairwise(parts) if p in ranks]:
            best, merged = min(pairs, key=ranks.__getitem__), []
            while parts:
                count = 2 if tuple(parts[:2]) == best else 1
                merged.append("".join(parts[:count]))
                parts = parts[count:]
            parts = merged
        out += [vocabulary()[part] for part in parts]
    return out


@pytest.fixture
def files(tmp_path):
    """Writes one vocabulary in its three forms."""
    pytest.importorskip("tokenizers")
    (tmp_path / "openai").mkdir()
    with gzip.open(tmp_path / "openai" / "bpe_simple_vocab_16e6.txt.gz", "wt") as file:
        file.write("\n".join(["version", *MERGES, "more than the tower has rows for"]))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary()))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    from vitlab.weights.tokenizer import _clip_bpe

    (tmp_path / "whole").mkdir()
    _clip_bpe(vocabulary(), [tuple(m.split()) for m in MERGES]).save(str(tmp_path / "whole" / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("name", ["openai", "vocab.json", "whole"])
def test_the_three_forms_of_clips_vocabulary_give_the_same_tokens(files, name):
    tokens = read_tokenizer(files / name, CLIP)(TEXTS)
    for row, text in zip(tokens, TEXTS, strict=True):
        whole = [*[SIZE - 2, *by_definition(text)][:11], SIZE - 1]
        np.testing.assert_array_equal(row, whole + [0] * (12 - len(whole)), err_msg=text)
    assert tokens[-1, -1] == SIZE - 1  # cut, and its end kept


@pytest.mark.parametrize(("name", "padding"), [("siglip_base_patch16", 1), ("siglip2_base_patch16", 0)])
def test_siglips_texts_lose_their_punctuation_and_end_once(tmp_path, name, padding):
    spm = pytest.importorskip("sentencepiece")
    model, ends = io.BytesIO(), {"eos_piece": "<eos>" if padding == 0 else "</s>", "pad_piece": "<pad>"}
    numbers = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    spm.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=30, minloglevel=2, **ends, **numbers)
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    pieces = spm.SentencePieceProcessor(model_proto=model.getvalue())
    tokens = read_tokenizer(tmp_path, text_config_of(name))(["The dog's   Photo!", "street " * 90])
    first = [*pieces.encode("the dogs photo"), 1]
    np.testing.assert_array_equal(tokens[0], first + [padding] * (64 - len(first)))
    assert tokens.shape == (2, 64) and tokens[1, -1] == 1 and (tokens[1, :-1] > 1).all()


def test_texts_are_cleaned_as_the_authors_do():
    assert clean_for_clip("  A &amp;amp; B\n c") == "a & b c"
    assert clean_for_siglip("A_photo, of the Dog's\tbone.") == "a photo of the dogs bone"


def test_a_vocabulary_of_another_tower_is_refused_with_the_remedy(files):
    short = TextConfig(dim=8, depth=1, num_heads=1, out_dim=8, vocab_size=300, length=12)
    with pytest.raises(ValueError, match=f"vocab.json has token {SIZE - 1}, and token_embed only 300 rows: take the vocabulary"):
        read_tokenizer(files / "vocab.json", short)(["a cat"])
    with pytest.raises(ValueError, match="vocab.json has no token </s>: it is no vocabulary of siglip towers"):
        read_tokenizer(files / "vocab.json", text_config_of("siglip_base_patch16"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"{", "cannot be read as a vocabulary of tokenizers"),
        ("x.txt.gz", b"no archive", "cannot be read as a vocabulary"),
        ("vocab.json", b"{}", "merges.txt beside it"),
        ("spiece.model", b"damaged", "cannot be read as a vocabulary of sentencepiece"),
        ("words.csv", b"", "is no vocabulary that is known: give tokenizer.json"),
    ],
)
def test_what_is_no_vocabulary_is_refused_with_its_name(tmp_path, name, content, words):
    pytest.importorskip("tokenizers")
    pytest.importorskip("sentencepiece")
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_tokenizer(tmp_path / name, CLIP)


def test_a_folder_without_a_vocabulary_is_refused_with_the_names_that_it_might_have(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no vocabulary; it is one of tokenizer.json, vocab.json"):
        find_vocabulary(tmp_path)
    with pytest.raises(FileNotFoundError, match="no vocabulary at"):
        find_vocabulary(tmp_path / "tokenizer.json")
