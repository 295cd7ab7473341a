"""Text into the numbers that a text tower reads, by the user's vocabulary file.

Hugging Face's `tokenizer.json`, or `vocab.json` with `merges.txt` beside it, and OpenAI's
`bpe_simple_vocab_16e6.txt.gz` are read by `tokenizers`; SentencePiece's `*.model` by
`sentencepiece`; the extra `text` has both. What is done to a text first, and what stands around its
tokens, is the tower's rule, not the file's: CLIP's authors lower it and join its words by single
spaces; SigLIP's authors, in their zero-shot evaluation, take punctuation out, too.

Departs from OpenAI's code: broken encodings are not mended (`ftfy`).
"""

import dataclasses
import gzip
import html
import json
import pathlib
import string
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from vitlab.models.text_tower import TextConfig

# Files that hold a vocabulary, the first that a folder has.
FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.model", "bpe_simple_vocab_16e6.txt.gz")
_FORMS = "tokenizer.json, vocab.json beside merges.txt, *.model of SentencePiece or OpenAI's *.txt.gz"
_LARGEST = 2**27  # bytes, unpacked, of a list of merges
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Tokens that stand around a text: their names in vocabularies, or a number."""

    start: tuple[str, ...]  # none: nothing stands before a text
    end: tuple[str, ...]
    padding: tuple[str, ...] | int


_FRAMES = {
    "clip": _Frame(("<|startoftext|>", "<start_of_text>"), ("<|endoftext|>", "<end_of_text>"), 0),
    "siglip": _Frame((), ("</s>",), ("</s>",)),
    "siglip2": _Frame((), ("<eos>",), ("<pad>",)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokens of texts, by one vocabulary and for one text tower."""

    encode: Callable[[str], Sequence[int]]  # tokens of a cleaned text, without any around them
    clean: Callable[[str], str]
    start: tuple[int, ...]
    end: int
    padding: int
    length: int  # tokens of every text
    vocab_size: int  # rows of the tower's embedding
    origin: str  # file name, for errors

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """Returns the tokens of texts: cut to `length`, the end always kept, or padded to it.

        Raises:
          ValueError: A token is beyond the tower's embedding: the vocabulary is another tower's.
        """
        out = np.full((len(texts), self.length), self.padding, np.int32)
        for row, text in zip(out, texts, strict=True):
            tokens = [*self.start, *self.encode(self.clean(text))][: self.length - 1]
            row[: len(tokens) + 1] = [*tokens, self.end]
        if out.size and out.max() >= self.vocab_size:
            raise ValueError(
                f"{self.origin} has token {out.max()}, and token_embed only {self.vocab_size} rows: "
                "take the vocabulary that was published beside the weights"
            )
        return out


def read_tokenizer(path: pathlib.Path, config: TextConfig) -> Tokenizer:
    """Returns the tokenizer of a text tower.

    Args:
      path: A vocabulary of one of the forms above, or a folder that has one of `FILES`.
      config: The tower's.

    Raises:
      FileNotFoundError: There is no such file, or none in the folder.
      ValueError: It is damaged, of another form, or lacks the tokens that end a text.
      ImportError: The library that reads it is missing; the extra `text` has it.
    """
    file = find_vocabulary(path)
    read, kind = _reader(file)
    try:
        encode, number_of = read(file, config.vocab_size)
    except ImportError as error:
        raise ImportError(f'{file.name} needs {kind}: pip install "vitlab[text]"') from error
    except FileNotFoundError:
        raise
    except Exception as error:  # the libraries raise kinds of their own, down to plain Exception
        raise ValueError(f"{file} cannot be read as a vocabulary of {kind}: {error}") from error
    frame, name = _FRAMES[config.tokens], file.name

    def one_of(names: tuple[str, ...]) -> int:
        found = [number for word in names if (number := number_of(word)) is not None]
        if not found:
            raise ValueError(f"{name} has no token {' or '.join(names)}: it is no vocabulary of {config.tokens} towers")
        return found[0]

    return Tokenizer(
        encode=encode,
        clean=clean_for_clip if config.tokens == "clip" else clean_for_siglip,
        start=(one_of(frame.start),) if frame.start else (),
        end=one_of(frame.end),
        padding=frame.padding if isinstance(frame.padding, int) else one_of(frame.padding),
        length=config.length,
        vocab_size=config.vocab_size,
        origin=name,
    )


def find_vocabulary(path: pathlib.Path) -> pathlib.Path:
    """Returns the vocabulary file that a path names, or that lies in a folder.

    Raises:
      FileNotFoundError: There is none.
    """
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} has no vocabulary; it is one of {', '.join(FILES)}")
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary at {path}")
    return path


def clean_for_clip(text: str) -> str:
    """Returns the text in small letters, words apart by one space, without HTML's escapes."""
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def clean_for_siglip(text: str) -> str:
    """Returns the text in small letters, its words apart by single spaces, without punctuation."""
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


_Read = tuple[Callable[[str], Sequence[int]], Callable[[str], int | None]]


def _reader(file: pathlib.Path) -> tuple[Callable[[pathlib.Path, int], _Read], str]:
    """Returns the function that reads a file of this name, and the library that it needs.

    Raises:
      ValueError: The name is of no known form.
    """
    if file.name.endswith(".txt.gz"):
        return _from_openai, "tokenizers"
    if file.suffix == ".model":
        return _from_sentencepiece, "sentencepiece"
    if file.suffix == ".json":
        return (_from_vocab_and_merges if file.name.endswith("vocab.json") else _from_tokenizer_json), "tokenizers"
    raise ValueError(f"{file.name} is no vocabulary that is known: give {_FORMS}")


def _from_tokenizer_json(file: pathlib.Path, vocab_size: int) -> _Read:
    from tokenizers import Tokenizer as Fast

    del vocab_size
    return _of_fast(Fast.from_str(file.read_text("utf-8")))


def _from_vocab_and_merges(file: pathlib.Path, vocab_size: int) -> _Read:
    del vocab_size
    merges = file.with_name(file.name.removesuffix("vocab.json") + "merges.txt")
    if not merges.is_file():
        raise FileNotFoundError(f"{file} needs {merges.name} beside it")
    lines = [line for line in merges.read_text("utf-8").splitlines() if line and not line.startswith("#version")]
    return _of_fast(_clip_bpe(json.loads(file.read_text("utf-8")), [_pair(line) for line in lines]))


def _from_openai(file: pathlib.Path, vocab_size: int) -> _Read:
    """Reads a list of merges: a title, then as many that count as the tower has rows for."""
    with gzip.open(file) as stream:
        try:
            text = stream.read(_LARGEST).decode("utf-8")
        except (EOFError, zlib.error) as error:
            raise ValueError(f"the archive is damaged ({error})") from error
    merges = [_pair(line) for line in text.split("\n")[1 : vocab_size - 2 * 256 - 2 + 1] if line]
    letters = list(_letters().values())
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    return _of_fast(_clip_bpe({word: i for i, word in enumerate(words)}, merges))


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split()
    return left, right


def _letters() -> dict[int, str]:
    """Returns a letter for each byte: itself where it is printable, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _clip_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]):
    """Returns CLIP's byte-pair encoding (arXiv:1508.07909): a word's last letter is marked."""
    from tokenizers import Regex, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import BPE

    fast = Fast(BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    fast.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return fast


def _of_fast(fast) -> _Read:
    fast.no_padding()
    fast.no_truncation()
    return lambda text: fast.encode(text, add_special_tokens=False).ids, fast.token_to_id


def _from_sentencepiece(file: pathlib.Path, vocab_size: int) -> _Read:
    from sentencepiece import SentencePieceProcessor

    del vocab_size
    pieces = SentencePieceProcessor(model_proto=file.read_bytes())

    def number_of(word: str) -> int | None:
        number = pieces.piece_to_id(word)
        return number if pieces.id_to_piece(number) == word else None

    return lambda text: pieces.encode(text, out_type=int), number_of
