"""Alias of the command `python -m vitlab.input_benchmark`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("vitlab.input_benchmark", run_name="__main__", alter_sys=True)
