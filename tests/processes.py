"""Scripts in processes of their own, whose environment is set before JAX starts."""

import os
import pathlib
import subprocess
import sys
import textwrap

# Seconds after which a process counts as stuck; one takes ten, more where others compute too.
SECONDS = 400


def run_script(
    script: str, *arguments: str, packages: pathlib.Path = pathlib.Path(__file__).parents[1], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Returns the script's output; fails with the end of its errors if the script fails."""
    env = os.environ | environment | {"PYTHONPATH": str(packages)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, env=env, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def run_on_four_devices(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Returns the output of a script on four devices, where this process has one."""
    return run_script(script, *arguments, JAX_NUM_CPU_DEVICES="4")
