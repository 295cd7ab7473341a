"""Alias of the command `python -m vitlab.preview`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("vitlab.preview", run_name="__main__", alter_sys=True)
