"""Real processes, killed and racing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from tiny_store import TOKENS, contents, everything, open_writer, write

from distill.errors import InputError
from distill.store import TeacherStore

FORK = multiprocessing.get_context("fork")
# What makes a change visible or durable; a process may die before each.
STEPS = ((os, "fsync"), (Path, "open"), (Path, "replace"), (Path, "unlink"), (Path, "rename"))


def in_process(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; its exit code, negative for a signal."""
    process = FORK.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die_at(step: int) -> None:
    """Let this process be killed before its `step`-th file operation."""
    done = 0

    def counted(original: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


@pytest.fixture
def uninterrupted(tmp_path: Path) -> dict[str, bytes]:
    write(open_writer(tmp_path / "uninterrupted.zarr"), *TOKENS)
    return contents(tmp_path / "uninterrupted.zarr")


def verify_present(path: Path) -> None:
    store = TeacherStore(path)
    for token in store.present:
        store.verify(token)


def resume(path: Path) -> None:
    writer = open_writer(path)
    write(writer, *writer.missing(TOKENS))


def test_killed_before_every_single_file_operation(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    path = tmp_path / "killed.zarr"
    write(open_writer(path), *TOKENS)
    step, exit_code = 0, -signal.SIGKILL

    def overwrite() -> None:
        die_at(step)
        write(open_writer(path), TOKENS[2])

    while exit_code == -signal.SIGKILL:
        step += 1
        open_writer(path).write(TOKENS[2], *everything("99"))
        exit_code = in_process(overwrite)
        assert TeacherStore(path).present >= set(TOKENS) - {TOKENS[2]}
        verify_present(path)
        write(open_writer(path), TOKENS[2])
        assert contents(path) == uninterrupted
    assert exit_code == 0
    assert step > 32  # 8 files, each opened, synced, renamed and its folder synced


def test_killed_while_creating(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    step, exit_code = 0, -signal.SIGKILL

    def create() -> None:
        die_at(step)
        open_writer(tmp_path / f"killed-{step}.zarr")

    while exit_code == -signal.SIGKILL:
        step += 6
        exit_code = in_process(create)
        resume(tmp_path / f"killed-{step}.zarr")
        assert contents(tmp_path / f"killed-{step}.zarr") == uninterrupted
    assert exit_code == 0
    assert step > 12


def test_killed_at_random_moments(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    path, moments = tmp_path / "killed.zarr", random.Random(0)
    write(open_writer(path), *TOKENS)

    def dump_forever() -> None:
        writer = open_writer(path)
        while True:
            write(writer, *TOKENS)

    for _ in range(12):
        process = FORK.Process(target=dump_forever)
        process.start()
        time.sleep(moments.uniform(0.02, 0.12))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert len(TeacherStore(path).present) >= len(TOKENS) - 1  # all but the one in flight
        verify_present(path)
        resume(path)
        assert contents(path) == uninterrupted


def test_two_processes_create_and_fill_one_store(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    path, barrier = tmp_path / "shared.zarr", FORK.Barrier(2)

    def dump(barrier: Barrier, rank: int) -> None:
        barrier.wait()
        write(open_writer(path), *TOKENS[rank::2])

    ranks = [FORK.Process(target=dump, args=(barrier, rank)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    assert contents(path) == uninterrupted
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["shared.zarr", "uninterrupted.zarr"]


def claims_and_waits(path: Path, token: str, fork: bool) -> int:
    """The id of a process that has claimed a sample and lives until it is killed, as does a fork of it if asked for."""
    receiver, sender = FORK.Pipe(duplex=False)

    def claim() -> None:
        assert open_writer(path).claim(token)
        if not fork or os.fork():
            sender.send(os.getpid())
        time.sleep(60)

    FORK.Process(target=claim, daemon=True).start()
    return int(receiver.recv())


@pytest.mark.parametrize("fork", [False, True])
def test_a_claim_ends_with_its_process(tmp_path: Path, fork: bool) -> None:
    """And not with a loader worker that outlives it."""
    path = tmp_path / "teacher.zarr"
    writer = open_writer(path)
    process = claims_and_waits(path, TOKENS[2], fork)
    assert not writer.claim(TOKENS[2])
    assert writer.claim(TOKENS[1])
    with pytest.raises(InputError, match=f"another process is writing sample {TOKENS[2]}"):
        write(writer, TOKENS[2])
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert writer.claim(TOKENS[2])
    write(writer, TOKENS[1], TOKENS[2])
    assert in_process(lambda: os._exit(not (writer.claim(TOKENS[1]) and writer.claim(TOKENS[2])))) == 0


def test_what_is_claimed_is_neither_discarded_nor_tidied_away(tmp_path: Path) -> None:
    path = tmp_path / "teacher.zarr"
    write(open_writer(path), *TOKENS[:3])
    process = claims_and_waits(path, TOKENS[2], fork=False)
    files = [next((path / "voxel_semantics").glob(f"c.{row}.*")) for row in (0, 2)]
    partial = [file.with_name(file.name + ".99999.partial") for file in files]
    for file in (*files, *partial):
        file.write_bytes(b"half a sample")
    writer = open_writer(path)
    assert [file.exists() for file in partial] == [False, True]
    assert writer.discard_damaged(TOKENS) == 1
    assert writer.missing(TOKENS) == [TOKENS[0], *TOKENS[3:]]
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert open_writer(path).discard_damaged(TOKENS) == 1
    assert not partial[1].exists()


def test_a_version_tells_whether_a_sample_was_written_again(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "teacher.zarr")
    assert writer.version(TOKENS[0]) is None
    write(writer, TOKENS[0])
    first = writer.version(TOKENS[0])
    assert first == writer.version(TOKENS[0])
    time.sleep(0.02)  # longer than the clock of a file system takes for a tick
    write(writer, TOKENS[0])
    assert writer.version(TOKENS[0]) not in (None, first)


def test_a_sample_is_committed_when_all_its_chunks_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kill can show, but a power cut would: each file synced, renamed, its folder synced; the record last."""
    path, events, replace = tmp_path / "teacher.zarr", [], Path.replace
    writer = open_writer(path)

    def traced_replace(source: Path, target: Path) -> Path:
        events.append(("rename", target))
        return replace(source, target)

    monkeypatch.setattr(
        os, "fsync", lambda handle: events.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}"))))
    )
    monkeypatch.setattr(Path, "replace", traced_replace)
    write(writer, TOKENS[1])
    expected = []
    for array in (*TeacherStore(path).arrays, "checksums"):
        (file,) = (path / array).glob("c.1.*")
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        expected += [("sync", partial), ("rename", file), ("sync", file.parent)]
    assert len(expected) == 3 * 8
    assert events == expected
