"""Each launcher's file is read by the parser of its language; its arguments are the vendor's."""

import re
import shlex
import subprocess

import pytest
import yaml

from vitlab.cli import split_overrides
from vitlab.config import ConfigError
from vitlab.launch import TARGETS, Job
from vitlab.launch.__main__ import main
from vitlab.launch.tpu import KINDS, Slice

WHERE = ("--project=lab", "--zone=us-west4-a", "--image=eu-docker.pkg.dev/lab/vitlab/vitlab:1")
CASES = {
    "slurm": ("--accelerator=h100:8", "--nodes=2", "--env=/scratch/my venv"),
    "queued_resources": ("--accelerator=v5e-16", "--num_slices=2", "--spot", *WHERE),
    "gke": ("--accelerator=v6e-64", "--num_slices=2", "--spot", WHERE[2]),
    "xpk": ("--accelerator=v5p-32", "--num_slices=2", "--cluster=pods", *WHERE),
    "skypilot": ("--accelerator=H100:8", "--nodes=2", "--spot", "--env=vitlab[cuda12]"),
}
DATA = "--config.data.data_dir=/data/it's here"  # a value that a shell must not take apart
COMMAND = ["python", "-m", "vitlab.train", "--config=vitlab:vit_imagenet:small_patch16", "--workdir=gs://bucket/run", DATA]


def launch(capsys, target, *arguments):
    main([f"--target={target}", *COMMAND[3:], *arguments, "--dry_run"])
    return capsys.readouterr().out


@pytest.mark.parametrize("target", ["slurm", "queued_resources", "xpk"])
def test_a_script_is_bash_and_its_training_command_survives_the_quoting(target, capsys):
    text = launch(capsys, target, *CASES[target])
    assert subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True).stderr == ""
    assert "@" not in text.replace("TERM@120", "").replace('"${where[@]}"', "")
    words = shlex.split(text, comments=True)
    if target == "xpk":
        words = shlex.split(next(word for word in words if word.startswith("--command=")).removeprefix("--command="))
    last = words.index(DATA)
    assert words[last - 4 : last + 1] == COMMAND[1:]


def test_slurm_starts_a_task_a_gpu_and_requeues_after_42_and_43(capsys):
    text = launch(capsys, "slurm", *CASES["slurm"], "--retries=7")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    assert options["nodes"] == "2" and options["ntasks-per-node"] == "8" and options["gpus-per-node"] == "h100:8"
    assert options["signal"] == "TERM@120" and "#SBATCH --requeue" in text
    for code, tries, requeued in [(42, 0, True), (43, 6, True), (42, 7, False), (1, 0, False), (0, 0, False)]:
        stubs = f"srun() {{ return {code}; }}; scontrol() {{ echo $@; }}; export SLURM_JOB_ID=5 SLURM_RESTART_COUNT={tries}\n"
        done = subprocess.run(["bash", "-c", stubs + text], capture_output=True, text=True)
        assert done.returncode == code and (done.stdout == "requeue 5\n") == requeued


def test_queued_resources_ask_again_for_what_was_taken_and_delete_what_has_ended(capsys, tmp_path):
    text = launch(capsys, "queued_resources", *CASES["queued_resources"])
    states = ["WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "ACTIVE"]
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    stubs = f"""
    cd {tmp_path}
    sleep() {{ :; }}
    gcloud() {{
      case "$*" in
        *describe*) head -n1 states; sed -i 1d states;;
        *ssh*) if [ ! -s states ]; then echo 0; fi;;
        *) echo "$@";;
      esac
    }}
    """
    done = subprocess.run(["bash", "-c", stubs + text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    create, deleted, again, last = done.stdout.splitlines()
    assert create.startswith("compute tpus queued-resources create vit-imagenet-small-patch16 --project=lab --zone=us-west4-a ")
    for flag in ("--node-count=2", "--node-prefix=vit-imagenet-small-patch16", "--accelerator-type=v5litepod-16", "--spot"):
        assert flag in create.split()
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create and "startup-script=" in create
    assert create == again and deleted == last and "delete" in deleted


@pytest.mark.parametrize(("codes", "result"), [((42, 43, 0), "0"), ((42, 1), "1"), ((137,) * 3, "137")])
def test_the_startup_script_starts_the_container_again_after_a_preemption_only(codes, result, capsys, tmp_path):
    text = launch(capsys, "queued_resources", *CASES["queued_resources"], "--retries=2")
    startup = text.split("<<'STARTUP'\n")[1].split("\nSTARTUP\n")[0].replace("/var/tmp", str(tmp_path))
    (tmp_path / "codes").write_text("\n".join(map(str, codes)) + "\n")
    stubs = f"gcloud() {{ :; }}; docker() {{ code=$(head -n1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; return $code; }}\n"
    subprocess.run(["bash", "-c", stubs + startup], check=True, timeout=60)
    assert (tmp_path / "vitlab.exit").read_text().strip() == result


def test_gke_has_a_job_a_slice_and_gives_up_only_where_a_restart_would_not_help(capsys):
    jobs = yaml.safe_load(launch(capsys, "gke", *CASES["gke"], "--retries=3"))
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobs["spec"]["failurePolicy"] == {
        "maxRestarts": 3,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 16, 16, 0)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2, 3]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "8x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"] == COMMAND and container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["name"] == rule["onExitCodes"]["containerName"]


def test_xpk_restarts_after_43_too(capsys):
    words = shlex.split(launch(capsys, "xpk", *CASES["xpk"]), comments=True)
    assert words[words.index("xpk") :][:3] == ["xpk", "workload", "create"]
    assert {"--tpu-type=v5p-32", "--num-slices=2", "--max-restarts=20", "--restart-on-exit-codes=43", "--cluster=pods"} <= set(words)


def test_skypilot_recovers_after_42_and_43_and_tells_the_nodes_of_each_other(capsys):
    task = yaml.safe_load(launch(capsys, "skypilot", *CASES["skypilot"]))
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8" and task["resources"]["use_spot"]
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [42, 43]}
    assert shlex.split(task["setup"]) == ["pip", "install", "vitlab[cuda12]"]
    environment = (
        "SKYPILOT_NODE_IPS=$'10.0.0.1\\n10.0.0.2' SKYPILOT_NUM_NODES=2 SKYPILOT_NODE_RANK=1; python() { printf '%s\\n' \"$@\"; }\n"
    )
    words = subprocess.run(["bash", "-c", environment + task["run"]], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words == [*COMMAND[1:], "--coordinator=10.0.0.1:12355", "--num_processes=2", "--process_id=1"]
    tpu = yaml.safe_load(launch(capsys, "skypilot", "--accelerator=v6e-16", "--image=me/vitlab"))["resources"]
    assert tpu["accelerators"] == "tpu-v6e-16" and tpu["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv6e"}
    assert tpu["image_id"] == "docker:me/vitlab"


def test_the_file_is_written_and_nothing_is_started(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--target=slurm", *COMMAND[3:], *CASES["slurm"], "--", "--watchdog_seconds=600"]
    assert main(arguments) == 0 == main(arguments)
    assert "next: sbatch vit-imagenet-small-patch16.sbatch" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert "--watchdog_seconds=600\n" in path.read_text()
    path.write_text("my own")
    with pytest.raises(ConfigError, match="exists, with another text"):
        main(arguments)
    assert path.read_text() == "my own"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("slurm", "--accelerator=8"), "--target=slurm needs --env"),
        (("slurm", *CASES["slurm"], "--spot"), "--target=slurm has no --spot"),
        (("slurm", "--accelerator=v5e-16", "--env=x"), "must be the GPUs of a node"),
        (("gke", "--accelerator=8", WHERE[2]), "must be a TPU such as v5e-16"),
        (("gke", "--accelerator=v5e-12", WHERE[2]), "has slices of 1, 4, 8, 16"),
        (("gke", "--accelerator=v4-7", WHERE[2]), "has slices of 8, 16"),
        (("xpk", "--accelerator=v5e-16", *WHERE), "needs --cluster"),
        (("skypilot", "--accelerator=8", "--env=vitlab"), "needs the kind of GPU"),
        (("gke", "--accelerator=v5e-16", WHERE[2], "--name=My_Run"), "lower-case letters"),
        (("gke", "--accelerator=v5e-16", WHERE[2], "--num_slices=0"), "at least 1"),
        (("gke", "--accelerator=v5e-16", WHERE[2], "--num_slices=3"), "must be a multiple of the 48 devices"),
    ],
)
def test_what_a_launcher_cannot_do_is_refused_with_the_remedy(arguments, words, capsys):
    with pytest.raises(ConfigError, match=re.escape(words)):
        launch(capsys, *arguments)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_topology_has_the_chips_that_its_accelerator_type_counts(kind):
    for chips, topology in kind.topologies.items():
        one = Slice.of(f"{kind.type}-{chips * kind.cores}")
        sides = [int(side) for side in topology.split("x")]
        product = 1
        for side in sides:
            product *= side
        assert product == one.chips == chips and one.hosts * one.chips_per_host == chips and sides == sorted(sides, key=lambda s: s == 1)


def test_no_launcher_is_without_a_case():
    assert set(CASES) == set(TARGETS) and split_overrides(COMMAND)[1]
    assert Job(command=("python",), name="a", accelerator="8").retries == 20
