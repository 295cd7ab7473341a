"""Parts of a user's own, in a package outside of vitlab, as CONTRIBUTING.md describes them.

`tests/test_plugins.py` runs them.
"""
