"""Parts of a user's own, in a package outside of vitlab's tree: what CONTRIBUTING.md describes, and `tests/test_plugins.py` runs."""
