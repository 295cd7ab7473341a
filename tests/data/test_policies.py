import pickle

import numpy as np
import pytest

from tests.data.conftest import smooth
from vitlab.config import AugmentConfig, ConfigError
from vitlab.data import policies
from vitlab.data.augment import augment
from vitlab.data.order import ShuffledOrder
from vitlab.data.policies import AUTO_AUGMENT, OPERATORS, color_jitter, make_policy

RNG = np.random.default_rng
IMAGE = smooth(RNG(0), 32, 40)
NAMES = ["rand-m9-mstd0.5-inc1", "rand-m15-mmax30-n3", "original", "v0-mstd0.5", "augmix-m3-w3", "3a"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_policies_are_functions_of_image_and_generator_and_pickle(name, channels):
    policy, image = make_policy(name), np.ascontiguousarray(IMAGE[..., :channels])
    outs = [policy(image, RNG(seed), "bicubic") for seed in range(30)]
    assert all(out.shape == image.shape and out.dtype == np.uint8 for out in outs)
    assert len({out.tobytes() for out in outs}) > (2 if name == "3a" and channels == 1 else 10)
    again = pickle.loads(pickle.dumps(policy))
    np.testing.assert_array_equal(again(image, RNG(7), "bicubic"), outs[7])


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_takes_every_level(name, level):
    out = OPERATORS[name](IMAGE, level, RNG(0), "bilinear")
    assert out.shape == IMAGE.shape and out.dtype == np.uint8


@pytest.mark.parametrize("name", [n for n in policies._INCREASING if n not in ("AutoContrast", "Equalize", "Invert", "SolarizeAdd")])
def test_increasing_operators_leave_the_image_at_level_zero_and_change_more_above(name):
    bits = {"PosterizeIncreasing": 16}.get(name, 1)  # PosterizeIncreasing keeps four bits at level 0, so that values change by less than 16
    changes = [np.abs(OPERATORS[name](IMAGE, level, RNG(0), "bilinear").astype(int) - IMAGE).mean() for level in (0.0, 0.4, 0.9)]
    assert changes[0] < bits and changes[0] <= changes[1] <= changes[2] and changes[2] > changes[0]


def test_rand_augment_applies_half_of_two_operators():
    policy = make_policy("rand-m9")
    same = np.mean([np.array_equal(policy(IMAGE, RNG(seed), "bilinear"), IMAGE) for seed in range(400)])
    assert 0.18 < same < 0.4  # a quarter of the images draws no operator, and some operators do nothing


def test_uniform_and_normal_noise_keep_to_the_range(monkeypatch):
    levels = []
    monkeypatch.setitem(OPERATORS, "Invert", lambda image, level, rng, _: levels.append(level) or image)
    for text in ("rand-m9-mstd0.5", "rand-m9-mstd101", "rand-m20-mmax30"):
        settings = make_policy(text).keywords["settings"]
        levels.clear()
        for seed in range(300):
            settings.apply("Invert", IMAGE, RNG(seed), "bilinear")
        if text == "rand-m9-mstd0.5":
            assert abs(np.mean(levels) - 0.9) < 0.01 and max(levels) == 1.0 and abs(np.std(levels) - 0.05) < 0.01
        elif text == "rand-m9-mstd101":
            assert abs(np.mean(levels) - 0.45) < 0.05 and 0 <= min(levels) < 0.05 < 0.85 < max(levels) <= 0.9
        else:
            assert set(levels) == {2.0}


def test_the_tables_of_auto_augment_have_25_pairs_of_known_operators():
    for table in AUTO_AUGMENT.values():
        assert len(table) == 25
        assert all(len(pair) == 2 and name in OPERATORS and 0 <= p <= 1 and 0 <= m <= 10 for pair in table for name, p, m in pair)


def test_three_augment_is_grey_solarised_or_blurred():
    policy = make_policy("3a")
    kinds = []
    for seed in range(60):
        out = policy(IMAGE, RNG(seed), "bilinear")
        grey = (out == out[..., :1]).all()
        kinds.append("grey" if grey else "solarised" if ((out == IMAGE) | (out == 255 - IMAGE)).all() else "blurred")
    assert {k: kinds.count(k) > 8 for k in ("grey", "solarised", "blurred")} == dict.fromkeys(("grey", "solarised", "blurred"), True)


def test_colour_jitter_of_no_strength_changes_nothing():
    np.testing.assert_array_equal(color_jitter(IMAGE, RNG(0), 0.0), IMAGE)
    assert (color_jitter(IMAGE, RNG(0), 0.4) != IMAGE).any()


def test_policy_and_jitter_join_the_augmentation():
    config = AugmentConfig(crop="center", policy="rand-m9-inc1", color_jitter=0.3)
    plain, _ = augment(IMAGE, RNG(3), AugmentConfig(crop="center"), (32, 40), None)
    out, _ = augment(IMAGE, RNG(3), config, (32, 40), make_policy("rand-m9-inc1"))
    np.testing.assert_array_equal(plain, IMAGE)
    assert out.shape == IMAGE.shape and (out != IMAGE).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("randaug", "must begin with one of rand, original, v0, augmix, 3a"),
        ("rand-x9", r'"x9" in augment.policy="rand-x9" must be a number after one of m, mstd, mmax, n, inc'),
        ("rand-m", "must be a number after"),
        ("rand-n2.5", "must have a whole number"),
        ("3a-m9", "after one of nothing"),
    ],
)
def test_malformed_names_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        make_policy(text)


def test_an_epoch_of_repeats_has_the_same_length_and_fewer_images():
    order = ShuffledOrder(12, 0, repeats=3)
    epochs = order(np.arange(24)).reshape(2, 4, 3)
    assert (epochs == epochs[..., :1]).all()
    assert all(len(set(epoch[:, 0])) == 4 for epoch in epochs)
    np.testing.assert_array_equal(epochs[0, :, 0], ShuffledOrder(12, 0)(np.arange(4)))
