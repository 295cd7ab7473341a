"""Intervals in the types of fields."""

import dataclasses

import pytest

from vitlab.bounds import Bounds, Count, Rate, Ratio, Side, check_bounds, hints_of


@pytest.mark.parametrize(("value", "inside"), [(0, True), (0.5, True), (1, False), (-1e-9, False), (1.0, False)])
def test_an_open_end_is_outside(value, inside):
    assert (value in Bounds(0, 1, open_most=True)) == inside


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (0, Count, r"x=0 must be in \[1, 1000000\]"),
        (1.0, Rate, r"x=1.0 must be in \[0, 1\)"),
        (0.0, Ratio | None, r"x=0.0 must be in \(0, 1000\]"),
        ((2, 0), tuple[Side, ...], r"x=\(2, 0\): each entry must be in \[1, 1000\]"),
        ((None, 0), tuple[Side | None, ...], "each entry must be"),
        ((3, 1.5), tuple[int, Rate], r"\[0, 1\)"),
        (-1, tuple[Count, Count] | Count, "must be"),
    ],
)
def test_a_number_outside_is_refused_with_the_interval(value, hint, words):
    with pytest.raises(ValueError, match=words):
        check_bounds("x", value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [(1, Count), (None, Ratio | None), ((7, None), tuple[Side | None, ...]), ("many", str | None), (-5, int), ((), tuple[Side, ...])],
)
def test_other_values_pass(value, hint):
    check_bounds("x", value, hint)


def test_hints_have_the_types_with_and_without_bounds():
    @dataclasses.dataclass
    class Parts:
        depth: Count
        rates: tuple[Rate, ...]

    assert hints_of(Parts) == {"depth": (int, Count), "rates": (tuple[float, ...], tuple[Rate, ...])}
