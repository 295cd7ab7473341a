"""Scripts in processes of their own, which have what must be said before JAX starts."""

import os
import pathlib
import subprocess
import sys
import textwrap


def run_script(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the script printed; fails with the end of its errors if it does."""
    env = os.environ | environment | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def run_on_four_devices(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same with four devices; this process has one."""
    return run_script(script, *arguments, JAX_NUM_CPU_DEVICES="4")
