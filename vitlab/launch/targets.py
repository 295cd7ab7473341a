"""One function a launcher: the values of its template, which lies beside this file."""

import dataclasses
import json
import pathlib
import shlex
import string
from collections.abc import Callable

from vitlab.config import ConfigError
from vitlab.launch.job import Job, gpus
from vitlab.launch.tpu import Slice

_HERE = pathlib.Path(__file__).parent
_PORT = 12355  # port of process 0, if the launcher gives none
_CPUS_PER_GPU = 8
_GRACE_SECONDS = 120  # between the signal and the end, enough to save


class _Text(string.Template):
    """Marks values as @{name}, because shells and YAML have $ themselves."""

    delimiter = "@"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A launcher."""

    template: str  # name of the file beside this one
    values: Callable[[Job], dict[str, str | int]]  # raises ConfigError for what the launcher cannot do
    submit: str  # the command that starts the written file
    devices: Callable[[Job], int]  # number of devices of the whole run

    def text(self, job: Job) -> str:
        """Returns the file for a job.

        Raises:
          ConfigError: The launcher needs something else, or cannot do what the job asks for.
        """
        return _Text((_HERE / self.template).read_text()).substitute(self.values(job))


def _slurm(job: Job) -> dict[str, str | int]:
    job.needs("slurm", "env")
    job.lacks("slurm", "image", "project", "zone", "cluster", "num_slices", "spot")
    kind, count = gpus(job.accelerator)
    python = f"{job.env}/bin/python" if job.env else "python"
    return {
        "name": job.name,
        "nodes": job.nodes,
        "tasks": count,
        "gpus": f"{kind}:{count}" if kind else count,
        "cpus": _CPUS_PER_GPU,
        "grace": _GRACE_SECONDS,
        "retries": job.retries,
        "command": shlex.join((python, *job.command[1:])),
    }


def _queued_resources(job: Job) -> dict[str, str | int]:
    job.needs("queued_resources", "project", "zone", "image")
    job.lacks("queued_resources", "nodes", "env", "cluster")
    tpu = Slice.of(job.accelerator)
    nodes = f"--node-id={job.name}" if job.num_slices == 1 else f"--node-count={job.num_slices} --node-prefix={job.name}"
    image = str(job.image)
    login = f"gcloud auth configure-docker {shlex.quote(image.split('/')[0])} --quiet" if ".pkg.dev/" in image else "true"
    return {
        **_google(job),
        "type": tpu.type,
        "runtime": tpu.kind.runtime,
        "nodes": nodes,
        "first": job.name if job.num_slices == 1 else f"{job.name}-0",
        "spot": " --spot" if job.spot else "",
        "login": login,
        "grace": _GRACE_SECONDS,
    }


def _gke(job: Job) -> dict[str, str | int]:
    job.needs("gke", "image")
    job.lacks("gke", "nodes", "env", "project", "zone", "cluster")
    tpu = Slice.of(job.accelerator)
    return {
        "name": job.name,
        "retries": job.retries,
        "slices": job.num_slices,
        "hosts": tpu.hosts,
        "accelerator": tpu.kind.gke,
        "topology": tpu.topology,
        "spot": '\n                cloud.google.com/gke-spot: "true"' if job.spot else "",
        "image": json.dumps(job.image),
        "command": json.dumps(list(job.command)),
        "chips": tpu.chips_per_host,
        "grace": _GRACE_SECONDS,
    }


def _xpk(job: Job) -> dict[str, str | int]:
    job.needs("xpk", "project", "zone", "cluster", "image")
    job.lacks("xpk", "nodes", "env", "spot")
    return {**_google(job), "type": Slice.of(job.accelerator).type, "cluster": shlex.quote(str(job.cluster)), "grace": _GRACE_SECONDS}


def _skypilot(job: Job) -> dict[str, str | int]:
    job.lacks("skypilot", "project", "cluster", "num_slices", "retries")
    if (job.env is None) == (job.image is None):
        raise ConfigError("--target=skypilot needs one of --env, what pip installs (vitlab[cuda12]), and --image")
    resources = {"use_spot": job.spot, "job_recovery": {"recover_on_exit_codes": [42, 43]}}
    if job.zone:
        resources["infra"] = job.zone
    if job.image:
        resources["image_id"] = f"docker:{job.image}"
    flags = ""
    if "-" in job.accelerator and ":" not in job.accelerator:
        job.lacks("skypilot", "nodes")
        tpu = Slice.of(job.accelerator)
        resources |= {"accelerators": f"tpu-{tpu.type}", "accelerator_args": {"runtime_version": tpu.kind.runtime}}
    else:
        kind, count = gpus(job.accelerator)
        if kind is None:
            raise ConfigError(f"--target=skypilot needs the kind of GPU: --accelerator=H100:{count}")
        resources["accelerators"] = f"{kind.upper()}:{count}"
        if job.nodes > 1:
            flags = (
                f' --coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{_PORT}"'
                ' --num_processes="$SKYPILOT_NUM_NODES" --process_id="$SKYPILOT_NODE_RANK"'
            )
    return {
        "name": job.name,
        "nodes": job.nodes,
        "resources": json.dumps(resources),
        "setup": f"pip install {shlex.quote(job.env)}" if job.env else "true",
        "command": shlex.join(job.command) + flags,
    }


def _google(job: Job) -> dict[str, str | int]:
    return {
        "name": job.name,
        "project": shlex.quote(str(job.project)),
        "zone": shlex.quote(str(job.zone)),
        "image": shlex.quote(str(job.image)),
        "slices": job.num_slices,
        "retries": job.retries,
        "command": shlex.join(job.command),
        "quoted": shlex.quote(shlex.join(job.command)),
    }


def _chips(job: Job) -> int:
    return Slice.of(job.accelerator).chips * job.num_slices


def _gpus(job: Job) -> int:
    return gpus(job.accelerator)[1] * job.nodes


def _either(job: Job) -> int:
    return _chips(job) if "-" in job.accelerator and ":" not in job.accelerator else _gpus(job)


TARGETS = {
    "slurm": Target(template="slurm.sbatch", values=_slurm, submit="sbatch", devices=_gpus),
    "queued_resources": Target(template="queued_resources.sh", values=_queued_resources, submit="bash", devices=_chips),
    "gke": Target(template="gke.yaml", values=_gke, submit="kubectl apply -f", devices=_chips),
    "xpk": Target(template="xpk.sh", values=_xpk, submit="bash", devices=_chips),
    "skypilot": Target(template="skypilot.yaml", values=_skypilot, submit="sky jobs launch", devices=_either),
}
