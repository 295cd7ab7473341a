"""Every variant takes every file that was published for it: the names and shapes of those files,
without their values.
"""

import gzip
import json
import pathlib

import numpy as np
import pytest

from vitlab.models.registry import abstract_model
from vitlab.weights.load import load_weights

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"
# Files in names or shapes that no recording has; the others take a minute.
QUICK = {("davit_base", 0), ("efficientvit_m0", 0), ("glnet_16g", 0), ("mambaout_base", 0), ("nextvit_base", 0), ("shvit_s1", 0)}
DEPLOYED = ("overlock_b", 1)


def pytest_generate_tests(metafunc):
    """A case for each published file in trees*.json.gz of --goldens, or of the folder here, where
    most are slow.
    """
    folder = metafunc.config.getoption("goldens")
    cases = []
    for path in sorted((folder or GOLDENS).glob("trees*.json.gz")):
        for name, tree in json.loads(gzip.decompress(path.read_bytes())).items():
            for i in range(1 + len(tree.get("others") or ())):
                marks = [] if folder or (name, i) in QUICK | {DEPLOYED} else [pytest.mark.slow]
                cases.append(pytest.param(path, name, i, id=f"{name}-{i}", marks=marks))
    metafunc.parametrize(("golden_file", "name", "number"), cases)


def published(path, name, number):
    tree = json.loads(gzip.decompress(path.read_bytes()))[name]
    return [tree, *(tree.get("others") or ())][number]


def test_a_variant_takes_a_file_that_was_published_for_it(golden_file, name, number):
    tree = published(golden_file, name, number)
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in (tree.get("fields") or {}).items()}
    model = abstract_model(name, image_size=tree["image_size"], num_classes=tree["num_classes"], **fields)
    kinds = tree.get("kinds") or {}
    tensors = {tensor: np.zeros(shape, kinds.get(tensor, "float32")) for tensor, shape in tree["tensors"].items()}
    if any(tensor.endswith(".lk_origin.bias") for tensor in tensors):
        with pytest.raises(ValueError, match="is of the deployed form"):
            load_weights(model, tensors)
        return
    report = load_weights(model, tensors)
    assert not report.misfits and not report.resampled
