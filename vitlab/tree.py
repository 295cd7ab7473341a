"""Names of a tree's leaves: "blocks/0/attn/qkv/kernel"."""

from typing import Any

import jax


def leaf_names(tree: Any) -> list[str]:
    """One name per leaf, in the order of `jax.tree.leaves`."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
