"""A named implementation runs or says why not; an automatic choice takes the first that can run.

The automatic choice is logged.
"""

import logging

import pytest

from pallas_kernels.dispatch import Implementation, UnsupportedError, _log_choice, dispatch


def small_only(x, **_):
    return None if x < 10 else f"{x=} is not below 10"


TABLE = {
    "fast": Implementation(lambda x, **_: ("fast", x), small_only),
    "slow": Implementation(lambda x, **_: ("slow", x), lambda x, **_: None if x < 100 else "too slow"),
}


@pytest.fixture(autouse=True)
def forget_what_was_logged():
    _log_choice.cache_clear()


@pytest.mark.parametrize(("x", "chosen"), [(1, "fast"), (10, "slow")])
def test_takes_the_first_that_can(x, chosen):
    assert dispatch("op", TABLE, None, x, scale=2) == (chosen, x)


def test_what_is_not_automatic_is_taken_only_by_name():
    table = {"untimed": Implementation(lambda x, **_: ("untimed", x), small_only, automatic=False), **TABLE}
    assert dispatch("op", table, None, 1) == ("fast", 1)
    assert dispatch("op", table, "untimed", 1) == ("untimed", 1)
    with pytest.raises(UnsupportedError, match="can run here: fast: x=100 is not below 10; slow: too slow$"):
        dispatch("op", table, None, 100)


def test_a_named_implementation_obeys_although_a_faster_one_can():
    assert dispatch("op", TABLE, "slow", 1) == ("slow", 1)


def test_a_named_implementation_that_cannot_says_why():
    with pytest.raises(UnsupportedError, match="op: implementation='fast' cannot run here: x=10 is not below 10"):
        dispatch("op", TABLE, "fast", 10)


def test_names_every_reason_when_nothing_can():
    with pytest.raises(UnsupportedError, match="no implementation can run here: fast: x=100 is not below 10; slow: too slow"):
        dispatch("op", TABLE, None, 100)


def test_an_unknown_name_is_answered_with_the_near_ones():
    with pytest.raises(ValueError, match=r"'fats' is not one of \['fast', 'slow'\]; did you mean 'fast'") as caught:
        dispatch("op", TABLE, "fats", 1)
    assert not isinstance(caught.value, UnsupportedError)
    with pytest.raises(ValueError, match="no name is near it"):
        dispatch("op", TABLE, "cuda", 1)


def test_says_its_choice_and_what_it_passed_over_once(caplog):
    caplog.set_level(logging.INFO, logger="pallas_kernels.dispatch")
    for x in (10, 10, 1):
        dispatch("op", TABLE, None, x)
    assert [record.getMessage() for record in caplog.records] == ["op runs slow (not fast: x=10 is not below 10)", "op runs fast"]


def test_a_named_choice_is_not_logged(caplog):
    caplog.set_level(logging.INFO, logger="pallas_kernels.dispatch")
    dispatch("op", TABLE, "slow", 1)
    assert not caplog.records
