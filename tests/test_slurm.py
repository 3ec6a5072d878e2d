"""A real SLURM, which these tests start: what it takes away, task or batch job, is queued again, and goes on."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import MissingConfigException
from workshop import BIN, ROOT, SMALL_STUDENT, SMALL_WORLD, STORE, Workshop

from distill.command import user_mistake
from distill.store import TeacherStore

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
WHERE = f"{os.environ['PATH']}:/usr/sbin"
SCRIPT = ROOT / "examples/slurm/train.sbatch"
LAUNCHED = ("-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=20")


def wait_for(true: Callable[[], bool], seconds: float = 180) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of this machine alone, which pretends to have eight cores; commands find it by the environment."""
    pytest.importorskip("submitit", reason="nothing that submits to SLURM: pip install hydra-submitit-launcher")
    if os.geteuid() or not all(shutil.which(program, path=WHERE) for program in PROGRAMS):
        pytest.skip("no SLURM to test with: apt-get install slurm-wlm munge, and be root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    (folder / "slurm.conf").write_text(configuration(folder))
    files = {"key-file": "key", "socket": "munge", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder / file}" for option, file in files.items()]
    with pytest.MonkeyPatch.context() as environment, ExitStack() as running:
        environment.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        environment.setenv("PATH", WHERE)
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running.callback(process.wait)
            running.callback(process.terminate)
        wait_for(lambda: "idle" in said("sinfo"))
        running.callback(wait_for, ended)
        running.callback(said, "scancel", "--user=root")
        yield


def configuration(folder: Path) -> str:
    """Of the cluster; what is queued again starts after 5 s (SLURM takes no less), not after two minutes."""
    host = socket.gethostname().partition(".")[0]
    with socket.socket() as one, socket.socket() as other:
        one.bind(("localhost", 0))
        other.bind(("localhost", 0))
        ports = [each.getsockname()[1] for each in (one, other)]
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=1
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1
PartitionName=all Nodes=ALL Default=YES
"""


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def started(shop: Workshop, program: str, *overrides: str) -> subprocess.Popen:
    command = shop.command(program, *overrides, *LAUNCHED)
    return subprocess.Popen(command, cwd=shop.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def running() -> list[str]:
    """Tasks, as array_task."""
    return said("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i").split()


def ended() -> bool:
    """Whether nothing runs and nothing is queued."""
    return not said("squeue", "--noheader")


def test_an_array_shares_a_dump_though_a_task_is_taken_away(slurm, workshop):
    array = started(workshop, "occ-dump", "gate.min_miou=1", "store.path=stores/array.zarr", "dump.task=0,1,2,3")
    store = workshop.folder / "stores/array.zarr"
    wait_for(lambda: len(running()) == 4)
    wait_for(lambda: store.exists())
    taken = running()[1]
    said("scontrol", "requeue", taken)
    wait_for(ended, 240)
    array.kill()  # it looks after its tasks ever more rarely
    shared, alone = TeacherStore(store), TeacherStore(workshop.folder / STORE)
    assert shared.tokens == alone.tokens
    for token in alone.tokens:
        np.testing.assert_array_equal(shared.semantics(token), alone.semantics(token))
    job = workshop.folder / "runs/.slurm" / taken.partition("_")[0]
    told = [log.read_text() for log in job.parent.glob(f"{job.name}_*/*.out")]
    assert len(told) == 4 and sum(text.count("Starting with JobEnvironment") for text in told) == 5
    dumped = [int(line.split()[1]) for text in told for line in text.splitlines() if line.startswith("dumped")]
    assert len(dumped) > 1 and sum(dumped) <= len(alone.tokens)  # of what it had dumped, the taken task said nothing


def test_a_training_whose_time_is_up_goes_on_bit_for_bit(slurm, workshop, trained):
    """SLURM's signal reaches all processes of the job in the first epoch: saved at once, queued again, the same run."""
    run = (*SMALL_STUDENT, "output=runs/queued", "trainer.checkpoint_every=1000", "trainer.workers=1")
    last = workshop.folder / "runs/queued/last.pt"
    training = started(workshop, "occ-train-student", *run)
    wait_for(lambda: bool(running()))
    (task,) = running()
    folder = workshop.folder / "runs/.slurm" / task
    wait_for(lambda: any(b"epoch 1/2" in log.read_bytes() for log in folder.glob("*.err")))
    said("scancel", "--signal=USR2", task)
    wait_for(last.exists)
    assert torch.load(last, weights_only=True)["step"] in (1, 2)
    wait_for(ended, 240)
    training.kill()
    assert "going on from" in "".join(log.read_text() for log in folder.glob("*.out"))
    assert_same(last, trained.parent / "last.pt")


def assert_same(*runs: Path) -> None:
    one, other = (torch.load(path, weights_only=True) for path in runs)
    assert one["history"] == other["history"]
    assert all(torch.equal(value, other["network"][name]) for name, value in one["network"].items())


def test_a_batch_job_of_torchrun_that_is_told_of_its_end_goes_on_bit_for_bit(slurm, workshop, trained, monkeypatch):
    """SIGUSR1 to the script, which is what SLURM sends it before the time limit."""
    monkeypatch.setenv("PATH", f"{BIN}:{WHERE}")
    run = (*SMALL_WORLD, *SMALL_STUDENT, "output=runs/batch", "trainer.checkpoint_every=1000")
    options = ("--gpus-per-node=0", "--cpus-per-task=1", "--time=20", f"--chdir={workshop.folder}")
    job = said("sbatch", "--parsable", *options, str(SCRIPT), *run).strip()
    log, last = workshop.folder / f"occ-train-student-{job}.out", workshop.folder / "runs/batch/last.pt"
    wait_for(lambda: log.exists() and "epoch 1/2" in log.read_text())
    said("scancel", "--signal=USR1", "--batch", job)
    wait_for(last.exists)
    wait_for(ended)
    told = log.read_text()
    assert "told to end: step" in told and "going on from" in told
    assert_same(last, trained.parent / "last.pt")


@pytest.mark.parametrize(
    ("told", "code", "asked"),
    [(True, 143, ["scancel --signal=TERM 9.0", "scontrol requeue 9"]), (False, 2, []), (False, 0, [])],
)
def test_the_batch_script_asks_to_be_queued_again_only_where_time_is_up(tmp_path, told, code, asked):
    """Without SLURM: its commands write down what they are asked; the program ends when it is told to."""
    until = f"until [ -s {tmp_path}/asked ]; do sleep 0.02; done" if told else ":"
    program = f"touch {tmp_path}/begun; {until}; exit {code}"
    tell = f'[ "$1" = show ] && echo node0 || echo "${{0##*/}} $@" >> {tmp_path}/asked'
    for name, does in (("srun", program), ("scontrol", tell), ("scancel", tell)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"SLURM_JOB_ID": "9", "SLURM_NNODES": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", SCRIPT], env=environment)
    wait_for((tmp_path / "begun").exists)
    if told:
        process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == code
    assert (tmp_path / "asked").exists() == told
    assert not told or (tmp_path / "asked").read_text().splitlines() == asked


@pytest.mark.parametrize("program", ["dump", "train", "eval"])
def test_the_launcher_composes(program):
    pytest.importorskip("submitit", reason="nothing that submits to SLURM: pip install hydra-submitit-launcher")
    with initialize_config_module("conf", version_base="1.3"):
        launcher = compose(program, ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and launcher.name == program
    assert str(launcher.submitit_folder) == "runs/.slurm/%j"


def test_whoever_has_no_launcher_is_told_what_to_install():
    missing = MissingConfigException("Could not load it", "hydra/launcher/submitit_slurm")
    assert user_mistake(missing).endswith("is of another package: pip install 'occ-distill[slurm]'")


def test_a_mistake_in_a_task_ends_the_sweep_with_its_line(slurm, workshop):
    line = workshop.refused(
        "occ-dump", "gate.min_miou=99", "gate.after=1", "store.path=stores/gated.zarr", "dump.task=0", *LAUNCHED
    )
    assert "less than gate.min_miou=99" in line
