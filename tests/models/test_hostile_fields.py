"""Every config field refuses impossible values with its rule, and builds accepted ones."""

import dataclasses
import math
import types
import typing

import pytest

from tests.models.conftest import fewer_parts, size_of
from vitlab.bounds import hints_of
from vitlab.models.contract import VisionConfig
from vitlab.models.registry import abstract_model, model_config

WRONG_TYPES = (None, "many", [], 1j)
INTS = (-1, 0, 1, 3, 2**63)
FLOATS = (-1.0, 0.0, 1.0, 1e9, math.nan)


def hostile(hint, value):
    """Returns values of other types, at and beyond the ends of the range, and of other lengths."""
    yield from WRONG_TYPES
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from hostile(one, value)
    elif origin is tuple and isinstance(value, tuple):
        yield from ((), value[:1], (*value, *value[:1]))
        yield from ((*value[:-1], one) for one in hostile(arguments[0], value[-1] if value else 0))
    elif hint is int:
        yield from (*INTS, True, 1.5)
    elif hint is float:
        yield from FLOATS


def cases(name, *, common):
    """Yields fields with a hostile value: the family's own, or those of all families (`common`)."""
    config = model_config(name, image_size=size_of(name), num_classes=3, **fewer_parts(model_config(name), in_the_middle=1))
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for field, (plain, _) in hints_of(type(config)).items():
        if (field in hints_of(VisionConfig)) == common:
            yield from ((fields | {field: value}, field, value) for value in hostile(plain, fields[field]))


def refusals(name, cases):
    """Returns wrong refusals, and the number of accepted cases."""
    wrong, accepted = [], 0
    for fields, field, value in cases:
        try:
            abstract_model(name, **fields)
            accepted += 1
        except ValueError as error:
            if "self." in str(error) or "must" not in str(error):
                wrong.append(f"{field}={value!r}: {error}")
        except Exception as error:  # any other exception is a finding of the test
            wrong.append(f"{field}={value!r}: {type(error).__name__}: {error}")
    return wrong, accepted


def test_every_field_of_a_family_is_bounded_where_it_is_defined(representative):
    wrong, accepted = refusals(representative, cases(representative, common=False))
    assert not wrong
    assert accepted  # so the cases are not all refused for another reason


@pytest.mark.parametrize("name", ["swin_tiny", "vit_tiny_patch16"])
def test_every_field_that_all_families_have_is_bounded(name):
    wrong, accepted = refusals(name, cases(name, common=True))
    assert not wrong and accepted
