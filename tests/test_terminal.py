import io
import logging
import os
import subprocess
import sys

import pytest

from tests.processes import SECONDS
from vitlab import cli, terminal
from vitlab.printable import printable
from vitlab.terminal import LogHandler, say

HOSTILE = "cat\x1b[31m\x07\r\n\x85\u2028\u202eexe.png\u2066\ufeff\x00\x7f\udcff"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[2Jcat", r"\x1b[2Jcat"),
        ("\x9b31mcat", r"\x9b31mcat"),  # the control sequence introducer as one character
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\u200b", r"a\u2028b\u200b"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is no text
        ("\U000e0041", r"\U000e0041"),
        ("Zürich 猫 कुत्ता می\u200cخواهم 👩\u200d🚀", "Zürich 猫 कुत्ता می\u200cخواهم 👩\u200d🚀"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped_and_letters_stay(text, seen):
    assert printable(text) == seen


def test_lines_keep_their_ends_when_said_and_nothing_else(capsys):
    say(f"one {printable(HOSTILE)}\ntwo \x1b[31m")
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3 and lines[1] == r"two \x1b[31m" and all(line.isprintable() for line in lines)


def test_a_stream_without_the_letters_gets_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("Zürich")
    assert stream.buffer.getvalue() == b"Z\\xfcrich\n"  # type: ignore[attr-defined]


def test_a_record_is_one_line_and_its_traceback_is_visible_too(capsys):
    logger = logging.Logger("vitlab.test")
    logger.addHandler(LogHandler())
    logger.warning("%s cannot be decoded", HOSTILE)
    try:
        raise ValueError("\x1b[31m")
    except ValueError:
        logger.exception("so")
    first, second, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(r"WARNING: cat\x1b[31m\x07\r\n") and first.endswith("cannot be decoded") and first.isprintable()
    assert second == "ERROR: so" and rest[0].startswith("Traceback") and rest[-1] == r"ValueError: \x1b[31m"


def test_an_error_of_a_command_is_one_visible_line(monkeypatch, capsys):
    def main(argv):
        raise cli.ConfigError(f"no class {HOSTILE}")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    errors = capsys.readouterr().err
    assert end.value.code == 2 and errors.count("\n") == 1 and errors.rstrip("\n").isprintable()


def run(code: str, **streams) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], timeout=SECONDS, **streams)


def test_a_result_that_cannot_be_written_is_a_failure_on_one_line():
    with open("/dev/full", "w") as full:
        done = run("from vitlab import cli; cli.run(lambda argv: print('x') or 0)", stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (1, b"error: the output cannot be written: No space left on device\n")
        done = run("from vitlab import cli; cli.run(lambda argv: print('x', flush=True) or 0)", stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (1, b"error: the output cannot be written: No space left on device\n")
        done = run("from vitlab import cli; cli.run(lambda argv: open('/nowhere') and 0)", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 1 and b"FileNotFoundError" in done.stderr


def test_text_for_a_stream_that_is_closed_or_full_is_lost_and_the_exit_code_is_not():
    code = "from vitlab.terminal import say, settle; say('x'); say('y', error=True); settle()"
    with open("/dev/full", "w") as full:
        assert run(code, stdout=full, stderr=full).returncode == 0
    closed = ["sh", "-c", f'exec "$0" -c "{code}" >&- 2>&-', sys.executable]
    assert subprocess.run(closed, timeout=SECONDS).returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    assert run(code, stdout=writer, stderr=writer).returncode == 0
    os.close(writer)


def test_a_traceback_is_visible(capsys):
    try:
        raise ValueError("\x1b[31m\u202e")
    except ValueError as error:
        terminal.show_exception(type(error), error, error.__traceback__)
    assert capsys.readouterr().err.endswith("ValueError: \\x1b[31m\\u202e\n")
