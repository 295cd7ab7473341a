"""Prints all keys of a config with meaning or value: python -m vitlab.config [--config=FILE].

The command itself is `vitlab.config_keys`, because it imports packages that may not be imported
here.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("vitlab.config_keys", run_name="__main__", alter_sys=True)
