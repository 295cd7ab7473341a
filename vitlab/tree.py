"""Names of a tree's leaves, such as "blocks/0/attn/qkv/kernel"; nested dicts split and joined."""

from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict


def leaf_names(tree: Any) -> list[str]:
    """One name per leaf, in the order of `jax.tree.leaves`."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def parted(tree: Any, mask: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Splits nested dicts into the leaves where `mask` is True, and the others.

    The mask is a tree of booleans of the same structure.
    """
    leaves, chosen = flatten_dict(tree), flatten_dict(mask)
    first, second = ({path: leaf for path, leaf in leaves.items() if chosen[path] == side} for side in (True, False))
    return unflatten_dict(first), unflatten_dict(second)


def joined(first: Any, second: Any) -> dict[Any, Any]:
    """One nested dict of the leaves of two; the reverse of `parted`."""
    return unflatten_dict(flatten_dict(first) | flatten_dict(second))
