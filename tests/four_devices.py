"""A script in a process of its own, which has four devices; this one has one."""

import os
import pathlib
import subprocess
import sys
import textwrap


def run_on_four_devices(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the script printed; fails with the end of its errors if it does."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
