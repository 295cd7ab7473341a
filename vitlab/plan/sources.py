"""Origins of a compiled program's operations: source lines, and the part of the model they make."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_ENTRY = re.compile(r"(\d+) (.*)")
_FIELD = re.compile(r"(\w+)=(\d+)")
_OWN = re.compile(r"/(vitlab|pallas_kernels)/")
_ROUNDABOUT = ("/product.py", "/conv_forms.py", "/normed.py", "/tensor_split.py")  # files that only pass work on


class Frame(NamedTuple):
    """A call in a stack of calls."""

    file: str
    function: str  # "Mlp.__call__"
    line: int


# A call belongs to the part of the first pattern that matches "file function"; the innermost call
# that matches any pattern decides.
_PARTS: Sequence[tuple[str, re.Pattern[str]]] = [
    (part, re.compile(pattern))
    for part, pattern in (
        ("norms", r" \w*Norm\w*\.|batch_norm\.py|normalization\.py"),
        ("attention", r"[aA]ttention"),
        ("MLP", r" \w*(Mlp|FeedForward|Ffn)\b|conv_mlp\.py"),
        ("embedding", r" \w*(Embed|Stem|Patches|Merging|Downsample)\w*\.|\._embed\b"),
        ("head", r"\.(head_logits|pool)\b|/heads/"),
        ("loss", r"losses\.py|_classification\.py"),
        ("optimizer", r"/optax/|train/(optimizer|groups|schedule|state)\.py"),
        ("input", r"train/(mix|erase)\.py|\.(checked|augmented)\b| augmented\b"),
    )
]


class Sources:
    """The tables of calls in the text of a program."""

    def __init__(self, text: str):
        names = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
        self._files, self._functions, self._locations, self._frames = (_table(text, name) for name in names)

    def calls(self, line: str) -> list[Frame]:
        """The calls that made an instruction, innermost first; none where the text does not say."""
        found = re.search(r"stack_frame_id=(\d+)", line)
        number, calls = int(found[1]) if found else 0, []
        while number in self._frames:
            frame = _numbers(self._frames[number])
            at = _numbers(self._locations[frame["file_location_id"]])
            file, function = (
                names[at[key]].strip('"') for names, key in ((self._files, "file_name_id"), (self._functions, "function_name_id"))
            )
            calls.append(Frame(file, function, at["line"]))
            number = frame.get("parent_frame_id", 1) - 1  # parent 1 marks the outermost call
        return calls


def part_of(calls: Sequence[Frame], op_name: str) -> str:
    """The part of the model, or of the step, that an instruction belongs to."""
    for call in calls:
        for part, pattern in _PARTS:
            if pattern.search(f"{call.file} {call.function}"):
                return part
    if op_name.startswith("batch["):
        return "input"
    return "optimizer" if op_name.startswith("state[") else "other"


def line_of(calls: Sequence[Frame]) -> str:
    """The innermost telling line of this project, such as "layers/mlp.py:33".

    Files that only pass work on, and kernels, are named only if there is no other.
    """
    own = [call for call in calls if _OWN.search(call.file)]
    telling = [call for call in own if "/vitlab/" in call.file and not call.file.endswith(_ROUNDABOUT)] or own
    if not telling:
        return ""
    return f"{_OWN.split(telling[0].file)[-1]}:{telling[0].line}"


def _table(text: str, name: str) -> Mapping[int, str]:
    _, _, rest = text.partition(f"\n{name}\n")
    rows = (_ENTRY.fullmatch(line) for line in rest.partition("\n\n")[0].splitlines())
    return {int(row[1]): row[2] for row in rows if row}


def _numbers(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in _FIELD.findall(text)}
