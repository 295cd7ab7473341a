"""Losses against numpy: void counts nowhere, parts of a batch give what the whole gives, and no
gradient is ever NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.config import Experiment, ModelConfig
from vitlab.heads.center_point import CenterMaps
from vitlab.models.registry import Preprocessing
from vitlab.tasks import setting_of
from vitlab.tasks.registry import named_task
from vitlab.train.step import _accumulate, _scales

RNG = np.random.default_rng(0)
B, H, W, K = 4, 8, 12, 3


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def setting(task, **options):
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, image_size=(H, W))
    return setting_of(Experiment(model=ModelConfig()), named_task(task).options(**options), preprocessing, num_classes=K)


def labels(void=0.3):
    return np.where(RNG.random((B, H, W)) < void, 255, RNG.integers(0, K, (B, H, W))).astype(np.uint8)


BOXES = np.full((B, 3, 7), -1, np.float32)  # the last image has none
BOXES[0, 0] = (1, 1, 5, 4, 2, 0, 12)
BOXES[1, 0], BOXES[1, 1] = (0, 0, 12, 8, 0, 0, 96), (6, 2, 12, 8, 1, 1, 36)  # the second is a crowd
BOXES[2, 0] = (10.5, 6.5, 12, 8, 1, 0, 2)
HOLES = np.where(RNG.random((B, H, W)) < 0.3, np.nan, RNG.uniform(0.5, 4, (B, H, W))).astype(np.float32)

CASES = {
    "segmentation": ({"dice_weight": 0.5}, {"logits": normal(B, H, W, K)}, {"segmentation": labels()}),
    "multilabel": ({}, normal(B, K), {"labels": RNG.integers(-1, 2, (B, K)).astype(np.int8)}),
    "regression": ({}, normal(B), {"count": np.array([1, np.nan, 3, 0], np.float32)}),
    "depth": ({}, normal(B, H, W), {"depth": HOLES}),
    "stereo": ({"max_disparity": 4}, normal(B, H, W, 5), {"disparity": HOLES}),
    "restoration": ({}, normal(B, H, W, 3), {"image": normal(B, H, W, 3), "target": RNG.integers(0, 256, (B, H, W, 3), np.uint8)}),
    "detection": (
        {},
        CenterMaps(normal(B, H // 2, W // 2, K), normal(B, H // 2, W // 2, 2), normal(B, H // 2, W // 2, 2)),
        {"boxes": BOXES},
    ),
}


def total(task, options, outputs, batch, parts=1):
    """Loss and gradient as the step computes them, of outputs in place of parameters."""
    own, told = named_task(task), setting(task, **options)
    batch = whole = jax.tree.map(jnp.asarray, {"image": jnp.zeros((B, H, W, 3)), **batch})

    def part(factor, state, batch, rng):
        scales = None if own.weights is None else _scales(own.weights(whole, told), parts)
        rows = jax.tree.map(lambda x: factor * x, batch["outputs"])
        values = {name: x.mean() if scales is None else x.sum() * scales[name] for name, x in own.loss(rows, batch, told).items()}
        return sum(values.values()), ({}, state)

    @jax.jit  # one program in place of many small ones
    def run(batch):
        value, _, _, gradient = _accumulate(part, jnp.ones(()), {}, batch, jax.random.key(0), parts=parts)
        return value, gradient

    value, gradient = run({**batch, "outputs": outputs})
    return float(value), float(gradient)


@pytest.mark.parametrize("task", CASES)
def test_parts_of_a_batch_give_what_the_whole_gives(task):
    options, outputs, batch = CASES[task]
    whole, halves = (total(task, options, outputs, batch, parts) for parts in (1, 2))
    np.testing.assert_allclose(halves, whole, rtol=2e-5)  # float32 sums in another order
    assert np.isfinite(whole).all() and whole[0] > 0 and whole[1] != 0


VOID = {
    "segmentation": {"segmentation": np.full((B, H, W), 255, np.uint8)},
    "multilabel": {"labels": np.full((B, K), -1, np.int8)},
    "regression": {"count": np.full(B, np.nan, np.float32)},
    "depth": {"depth": np.full((B, H, W), np.nan, np.float32)},
    "stereo": {"disparity": np.full((B, H, W), np.nan, np.float32)},
}


@pytest.mark.parametrize("task", VOID)
def test_a_batch_of_which_nothing_is_known_has_no_loss_and_no_gradient(task):
    options, outputs, _ = CASES[task]
    assert total(task, options, outputs, VOID[task]) == (0, 0)


def test_images_without_objects_count_as_background():
    value, gradient = total("detection", {}, CASES["detection"][1], {"boxes": np.full((B, 3, 7), -1, np.float32)})
    assert value > 0 and np.isfinite(gradient)


def test_cross_entropy_is_the_mean_over_known_pixels():
    logits, truth = np.asarray(CASES["segmentation"][1]["logits"], np.float64), CASES["segmentation"][2]["segmentation"]
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    known = truth != 255
    expected = -log[known][np.arange(known.sum()), truth[known]].mean()
    assert total("segmentation", {}, *CASES["segmentation"][1:])[0] == pytest.approx(expected, rel=1e-6)


def test_two_whole_disparities_share_the_cross_entropy_of_one_between():
    logits = np.asarray(CASES["stereo"][1], np.float64)[0, 0, 0]
    log = logits - np.log(np.exp(logits).sum())
    disparity = np.full((B, H, W), np.nan, np.float32)
    disparity[0, 0, 0] = 2.25
    error = abs((np.exp(log) * np.arange(5)).sum() - 2.25)
    value, _ = total("stereo", {"max_disparity": 4}, CASES["stereo"][1], {"disparity": disparity})
    assert value == pytest.approx(error - 0.75 * log[2] - 0.25 * log[3], rel=1e-5)


def test_a_detector_with_the_true_maps_finds_the_boxes():
    from vitlab.tasks.detection import _targets, predictions

    maps, told = CASES["detection"][1], setting("detection", max_boxes=3)
    target = _targets(jnp.asarray(BOXES), maps, 2.0)
    rows, cells = jnp.arange(B)[:, None], target["index"]
    there = target["there"][..., None]

    def placed(values):
        flat = jnp.zeros((B, H // 2 * W // 2, 2)).at[rows, cells].add(jnp.where(there, values, 0))
        return flat.reshape(B, H // 2, W // 2, 2)

    perfect = CenterMaps(jnp.log(target["heat"] + 1e-6) * 20 + 10, placed(target["size"]), placed(target["offset"]))
    found = np.asarray(predictions(perfect, told)["boxes"])
    for image in range(3):
        np.testing.assert_allclose(found[image, 0, :5], BOXES[image, 0, :5], atol=1e-4)
    assert not np.asarray(target["counted"])[1, 2, 4] and np.asarray(target["counted"])[0].all()  # inside the crowd
