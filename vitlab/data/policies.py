"""Augmentation policies by timm's names: RandAugment, AutoAugment, AugMix, 3-Augment.

Names are "rand-m9-mstd0.5-inc1", "original", "v0-mstd0.5", "augmix-m3-w3" or "3a". A policy is a
function of (image, generator, interpolation, moves=None). It appends its geometric moves to the
list `moves`, so that other fields of the example can be moved too. Operators, levels and defaults
are timm's, whose names the recipes use; "v0" is the policy of EfficientNet's TPU code.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np

from vitlab.config import ConfigError
from vitlab.data import image_ops as ops
from vitlab.data.image_ops import Pixels
from vitlab.data.warp import Matrix, Move, Size, size_of

Rng = np.random.Generator
Policy = Callable[..., Pixels]  # called with (image, generator, interpolation, moves)
LEVELS = 10  # magnitude of the full range of an operator


def _sign(rng: Rng, x: float) -> float:
    return -x if rng.random() > 0.5 else x


def _enhance(fn: Callable[[Pixels, float], Pixels]) -> tuple[Callable[..., Pixels], Callable[..., Pixels]]:
    """Two operators of a blend: factor growing with the level, and factor off 1 by the level.

    The first factor is in [0.1, 1.9]; the second is above or below 1 with equal probability.
    """
    plain = lambda image, level, rng, _: fn(image, level * 1.8 + 0.1)  # noqa: E731
    increasing = lambda image, level, rng, _: fn(image, max(0.1, 1 + _sign(rng, level * 0.9)))  # noqa: E731
    return plain, increasing


def _rotation(size: Size, level: float, rng: Rng) -> Matrix:
    a, b, c, d, e, f = ops.rotation(size, _sign(rng, level * 30))
    return a, b, c, d, e, f


def _shear(size: Size, level: float, rng: Rng, *, along: str) -> Matrix:
    del size
    amount = _sign(rng, level * 0.3)
    return (1, amount, 0, 0, 1, 0) if along == "x" else (1, 0, 0, amount, 1, 0)


def _translation(size: Size, level: float, rng: Rng, *, along: str, share: float = 0.45) -> Matrix:
    amount = _sign(rng, level * share) * size[1 if along == "x" else 0]
    return (1, 0, amount, 0, 1, 0) if along == "x" else (1, 0, 0, 0, 1, amount)


# Operators that move pixels: name -> function of (size of the image, level, generator) that gives
# the matrix of `image_ops.affine`.
MOVING: dict[str, Callable[[Size, float, Rng], Matrix]] = {
    "Rotate": _rotation,
    "ShearX": functools.partial(_shear, along="x"),
    "ShearY": functools.partial(_shear, along="y"),
    "TranslateXRel": functools.partial(_translation, along="x"),
    "TranslateYRel": functools.partial(_translation, along="y"),
}


def _moving(name: str, size: Size, level: float, rng: Rng, interpolation: str) -> Move:
    """Draws the move of the operator `name` of `MOVING`."""
    matrix = MOVING[name](size, level, rng)
    return Move(matrix=matrix, size=size, pixels=functools.partial(ops.affine, matrix=matrix, interpolation=interpolation))


def _moved(image: Pixels, level: float, rng: Rng, interpolation: str, *, name: str) -> Pixels:
    return _moving(name, size_of(image), level, rng, interpolation).pixels(image)


_ENHANCERS = {"Color": ops.color, "Contrast": ops.contrast, "Brightness": ops.brightness, "Sharpness": ops.sharpness}
# Name -> function of (image, level in [0, 1] or above, generator, interpolation).
OPERATORS: dict[str, Callable[[Pixels, float, Rng, str], Pixels]] = {
    "AutoContrast": lambda image, level, rng, _: ops.auto_contrast(image),
    "Equalize": lambda image, level, rng, _: ops.equalize(image),
    "Invert": lambda image, level, rng, _: ops.invert(image),
    "Posterize": lambda image, level, rng, _: ops.posterize(image, int(level * 4)),
    "PosterizeIncreasing": lambda image, level, rng, _: ops.posterize(image, 4 - int(level * 4)),
    "PosterizeOriginal": lambda image, level, rng, _: ops.posterize(image, int(level * 4) + 4),
    "Solarize": lambda image, level, rng, _: ops.solarize(image, int(level * 256)),
    "SolarizeIncreasing": lambda image, level, rng, _: ops.solarize(image, 256 - int(level * 256)),
    "SolarizeAdd": lambda image, level, rng, _: ops.solarize_add(image, int(level * 110)),
    **{name: _enhance(fn)[0] for name, fn in _ENHANCERS.items()},
    **{f"{name}Increasing": _enhance(fn)[1] for name, fn in _ENHANCERS.items()},
    **{name: functools.partial(_moved, name=name) for name in MOVING},
}
_PLAIN = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", *_ENHANCERS, *MOVING)
_INCREASING = (
    "AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    *(f"{name}Increasing" for name in _ENHANCERS), *MOVING,
)  # fmt: skip
_AUGMIX = tuple(name for name in _INCREASING if name not in ("Invert", "SolarizeAdd"))  # with timm's four enhancers, absent from the paper

# Each line is a sub-policy of two (operator, probability, magnitude). "original": arXiv:1805.09501,
# table 9; "v0": TPU code of EfficientNet.
_ORIGINAL = """
PosterizeOriginal 0.4 8 Rotate 0.6 9, Solarize 0.6 5 AutoContrast 0.6 5, Equalize 0.8 8 Equalize 0.6 3, PosterizeOriginal 0.6 7
PosterizeOriginal 0.6 6, Equalize 0.4 7 Solarize 0.2 4, Equalize 0.4 4 Rotate 0.8 8, Solarize 0.6 3 Equalize 0.6 7, PosterizeOriginal
0.8 5 Equalize 1.0 2, Rotate 0.2 3 Solarize 0.6 8, Equalize 0.6 8 PosterizeOriginal 0.4 6, Rotate 0.8 8 Color 0.4 0, Rotate 0.4 9
Equalize 0.6 2, Equalize 0.0 7 Equalize 0.8 8, Invert 0.6 4 Equalize 1.0 8, Color 0.6 4 Contrast 1.0 8, Rotate 0.8 8 Color 1.0 2, Color
0.8 8 Solarize 0.8 7, Sharpness 0.4 7 Invert 0.6 8, ShearX 0.6 5 Equalize 1.0 9, Color 0.4 0 Equalize 0.6 3, Equalize 0.4 7 Solarize 0.2
4, Solarize 0.6 5 AutoContrast 0.6 5, Invert 0.6 4 Equalize 1.0 8, Color 0.6 4 Contrast 1.0 8, Equalize 0.8 8 Equalize 0.6 3"""
_V0 = """
Equalize 0.8 1 ShearY 0.8 4, Color 0.4 9 Equalize 0.6 3, Color 0.4 1 Rotate 0.6 8, Solarize 0.8 3 Equalize 0.4 7, Solarize 0.4 2
Solarize 0.6 2, Color 0.2 0 Equalize 0.8 8, Equalize 0.4 8 SolarizeAdd 0.8 3, ShearX 0.2 9 Rotate 0.6 8, Color 0.6 1 Equalize 1.0 2,
Invert 0.4 9 Rotate 0.6 0, Equalize 1.0 9 ShearY 0.6 3, Color 0.4 7 Equalize 0.6 0, Posterize 0.4 6 AutoContrast 0.4 7, Solarize 0.6 8
Color 0.6 9, Solarize 0.2 4 Rotate 0.8 9, Rotate 1.0 7 TranslateYRel 0.8 9, ShearX 0.0 0 Solarize 0.8 4, ShearY 0.8 0 Color 0.6 4, Color
1.0 0 Rotate 0.6 2, Equalize 0.8 4 Equalize 0.0 8, Equalize 1.0 4 AutoContrast 0.6 2, ShearY 0.4 7 SolarizeAdd 0.6 7, Posterize 0.8 2
Solarize 0.6 10, Solarize 0.6 8 Equalize 0.6 1, Color 0.8 6 Rotate 0.4 5"""


def parse_sub_policies(text: str) -> tuple[tuple[tuple[str, float, float], ...], ...]:
    """Parses the table of an AutoAugment policy."""
    rows = [row.split() for row in text.split(",")]
    return tuple(tuple((row[i], float(row[i + 1]), float(row[i + 2])) for i in (0, 3)) for row in rows)


AUTO_AUGMENT = {"original": parse_sub_policies(_ORIGINAL), "v0": parse_sub_policies(_V0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings in a policy's name, by their letters."""

    m: float = 10.0  # magnitude; an operator has its full range at 10
    mstd: float = 0.0  # standard deviation of the magnitude; above 100 the magnitude is uniform in [0, m]
    mmax: float = float(LEVELS)  # upper bound of the magnitude after noise
    n: int = 2  # rand: operators per image
    inc: int = 0  # rand: 1 for operators whose severity grows with the magnitude
    w: int = 3  # augmix: number of chains
    d: int = -1  # augmix: operators per chain; -1 draws 1 to 3
    a: float = 1.0  # augmix: parameter of the Dirichlet and Beta distributions

    def apply(
        self, name: str, image: Pixels, rng: Rng, interpolation: str, moves: list[Move] | None = None, *, magnitude: float | None = None
    ) -> Pixels:
        """Applies one operator at a drawn level."""
        magnitude = self.m if magnitude is None else magnitude
        if self.mstd > 100:
            magnitude = rng.uniform(0, magnitude)
        elif self.mstd > 0:
            magnitude = rng.normal(magnitude, self.mstd)
        level = min(max(magnitude, 0.0), self.mmax) / LEVELS
        if moves is None or name not in MOVING:
            return OPERATORS[name](image, level, rng, interpolation)
        moves.append(_moving(name, size_of(image), level, rng, interpolation))
        return moves[-1].pixels(image)


def make_policy(text: str) -> Policy:
    """The policy of a name.

    Raises:
      ConfigError: There is no such policy.
    """
    kind, *rest = text.split("-")
    if kind not in _POLICIES:
        raise ConfigError(f'augment.policy="{text}" must begin with one of {", ".join(_POLICIES)}')
    make, keys, defaults = _POLICIES[kind]
    values = dict(defaults)
    for part in rest:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", part)
        if not match or match[1] not in keys:
            raise ConfigError(f'"{part}" in augment.policy="{text}" must be a number after one of {", ".join(keys) or "nothing"}')
        whole = match[1] in ("n", "inc", "w", "d")
        if whole and not match[2].isdigit():
            raise ConfigError(f'"{part}" in augment.policy="{text}" must have a whole number')
        values[match[1]] = int(match[2]) if whole else float(match[2])
    return functools.partial(make, settings=Settings(**values), kind=kind)


def _rand_augment(image: Pixels, rng: Rng, interpolation: str, moves: list[Move] | None = None, *, settings: Settings, kind: str) -> Pixels:
    """RandAugment (arXiv:1909.13719); as in timm, an operator is applied with probability 1/2."""
    del kind
    names = _INCREASING if settings.inc else _PLAIN
    for i in rng.integers(len(names), size=settings.n):
        if rng.random() <= 0.5:
            image = settings.apply(names[i], image, rng, interpolation, moves)
    return image


def _auto_augment(image: Pixels, rng: Rng, interpolation: str, moves: list[Move] | None = None, *, settings: Settings, kind: str) -> Pixels:
    """AutoAugment (arXiv:1805.09501)."""
    table = AUTO_AUGMENT[kind]
    for name, prob, magnitude in table[rng.integers(len(table))]:
        if rng.random() <= prob:
            image = settings.apply(name, image, rng, interpolation, moves, magnitude=magnitude)
    return image


def _aug_mix(image: Pixels, rng: Rng, interpolation: str, moves: list[Move] | None = None, *, settings: Settings, kind: str) -> Pixels:
    """AugMix (arXiv:1912.02781), without its consistency loss.

    It mixes copies that were moved differently, and so reports no move.
    """
    del kind, moves
    mixed = np.zeros(image.shape, np.float32)
    shares, share = rng.dirichlet([settings.a] * settings.w), np.float32(rng.beta(settings.a, settings.a))
    for weight in shares:
        chain = image
        for i in rng.integers(len(_AUGMIX), size=settings.d if settings.d > 0 else rng.integers(1, 4)):
            chain = settings.apply(_AUGMIX[i], chain, rng, interpolation)
        mixed += np.float32(weight) * chain
    return (image + share * (np.trunc(mixed) - image)).astype(np.uint8)


def _three_augment(
    image: Pixels, rng: Rng, interpolation: str, moves: list[Move] | None = None, *, settings: Settings, kind: str
) -> Pixels:
    """3-Augment (DeiT III, arXiv:2204.07118, 3.2): grey, solarised or blurred.

    Its colour jitter is `augment.color_jitter`.
    """
    del settings, interpolation, kind, moves
    choice = rng.integers(3)
    if choice == 2:
        return ops.blur(image, rng.uniform(0.1, 2.0))
    return ops.grey_scale(image) if choice == 0 else ops.solarize(image)


# First part of the name -> policy, its letters, and defaults that differ from `Settings`.
_POLICIES = {
    "rand": (_rand_augment, ("m", "mstd", "mmax", "n", "inc"), {}),
    "original": (_auto_augment, ("mstd",), {}),
    "v0": (_auto_augment, ("mstd",), {}),
    "augmix": (_aug_mix, ("m", "mstd", "w", "d", "a"), {"m": 3.0, "mstd": math.inf}),
    "3a": (_three_augment, (), {}),
}


def color_jitter(image: Pixels, rng: Rng, strength: float) -> Pixels:
    """Changes brightness, contrast and saturation in random order, as torchvision does.

    Each factor is uniform in [1 - strength, 1 + strength].
    """
    for i in rng.permutation(3):
        image = (ops.brightness, ops.contrast, ops.color)[i](image, rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image
