"""A machine that is taken away: a checkpoint at once, and the run goes on bit for bit, on several nodes, too."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from workshop import BIN, SMALL_STUDENT, Workshop

from student.preemption import PREEMPTED, Preemption

NEVER = "trainer.checkpoint_every=1000"


def wait_for(true: Callable[[], bool], *processes: subprocess.Popen) -> None:
    while not true():
        assert all(process.poll() is None for process in processes), "it ended before"
        time.sleep(0.02)


@contextmanager
def started(shop: Workshop, *commands: list[str]) -> Iterator[tuple[list[subprocess.Popen], Path]]:
    """Processes in groups of their own, as a scheduler starts them; what they say goes into a file."""
    said = shop.folder / "said.txt"
    with said.open("wb") as stream:
        streams = {"stdout": stream, "stderr": stream, "start_new_session": True}
        processes = [subprocess.Popen(command, cwd=shop.folder, **streams) for command in commands]
        try:
            yield processes, said
        finally:
            for process in processes:
                process.kill()
                process.wait()


def loaded(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(one: dict, other: dict) -> None:
    assert one["history"] == other["history"]
    for part in ("network", "ema"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())


def test_a_run_that_is_told_to_save_and_then_to_end_goes_on_bit_for_bit(workshop, trained):
    """All processes of the job are told, loader workers too: in an epoch by SIGUSR1, in validation by SIGTERM."""
    run = (*SMALL_STUDENT, "output=runs/preempted", NEVER)
    last = workshop.folder / "runs/preempted/last.pt"
    with started(workshop, workshop.command("occ-train-student", *run, "trainer.workers=1")) as ((process,), said):
        wait_for(lambda: b"epoch 1/2" in said.read_bytes(), process)
        os.killpg(process.pid, signal.SIGUSR1)
        wait_for(last.exists, process)
        assert loaded(last)["step"] in (1, 2)
        wait_for(lambda: loaded(last)["step"] == 2, process)  # saved before validation
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(120) == PREEMPTED
        state = loaded(last)
        assert f"told to end: step {state['step']} is in {last}; run the same command again" in said.read_text()
        assert b"Traceback" not in said.read_bytes()
    assert state["step"] < 4
    assert "going on from" in workshop.ok("occ-train-student", *run)
    assert_same(loaded(last), loaded(trained.parent / "last.pt"))


def test_two_nodes_train_as_one_does_though_they_are_taken_away(workshop):
    """c10d rendezvous of two torchruns, both told to end after the first step; one node with two ranks goes on."""
    run = (*SMALL_STUDENT, "trainer.batch_size=2", "trainer.max_val_samples=2", NEVER)
    ended = workshop.launch(2, "occ-train-student", *run, "output=runs/one_node")
    assert ended.returncode == 0, ended.stderr
    last = workshop.folder / "runs/two_nodes/last.pt"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "job", "--rdzv-endpoint", place, "--local-addr", "localhost"]
    node = [str(BIN / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1", *rendezvous, "--no-python"]
    command = [*node, *workshop.command("occ-train-student", *run, "output=runs/two_nodes")]
    with started(workshop, command, command) as (nodes, said):
        wait_for(lambda: b"epoch 1/2" in said.read_bytes(), *nodes)
        for process in nodes:
            process.terminate()
        assert all(process.wait(120) for process in nodes)
        told = said.read_text()
    step = loaded(last)["step"]
    assert (step, f"told to end: step {step} is in {last}" in told) == (1, True)
    ended = workshop.launch(2, "occ-train-student", *run, "output=runs/two_nodes")
    assert ended.returncode == 0, ended.stderr
    assert "going on from" in ended.stdout
    assert_same(loaded(last), loaded(workshop.folder / "runs/one_node/last.pt"))


def test_signals_are_noted_once_and_left_alone_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.asked()
        preemption.obey()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [preemption.asked(), preemption.asked()] == [True, False]
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked()
        with pytest.raises(SystemExit, match="143"):
            preemption.obey()
        assert not preemption.asked()
        with preemption.saved():
            os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(SystemExit, match="143"), preemption.saved():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit, match="143"), preemption.saved():
            raise AssertionError("the block is not entered")
    assert signal.getsignal(signal.SIGTERM) == before


def test_whoever_listened_before_is_told_when_all_is_saved():
    """As submitit, which has the job queued again at SIGUSR2."""
    told = Mock()
    before = signal.signal(signal.SIGUSR2, told)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert preemption.asked() and not told.called
            preemption.obey()
            preemption.obey()
            told.assert_called_once_with(signal.SIGUSR2, None)
            with preemption.saved():
                os.kill(os.getpid(), signal.SIGUSR2)
                assert told.call_count == 2
        assert signal.getsignal(signal.SIGUSR2) is told
    finally:
        signal.signal(signal.SIGUSR2, before)
