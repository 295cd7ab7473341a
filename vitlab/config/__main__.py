"""Every key of a config, with its meaning, or its value in a config file: python -m vitlab.config [--config=FILE].

The command itself is `vitlab.config_keys`: it imports rooms that lie above this one.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("vitlab.config_keys", run_name="__main__", alter_sys=True)
