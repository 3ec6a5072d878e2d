"""What becomes of a store whose writers are killed, whose bits flip and that is read for hours.

    python benchmarks/store_faults.py kills 1000   who dumps, packs or converts is killed, another goes on
    python benchmarks/store_faults.py flips 1000   one bit of one file flips, and everything is read; half is packed
    python benchmarks/store_faults.py reads 10000  keyframes are read one after the other
    python benchmarks/store_faults.py full 1       every file operation of creating, writing, packing and converting
                                                   finds the disk full; 7: every seventh
    python benchmarks/store_faults.py fills 300    a small file system has room for a random part of that:
                                                   --folder, of mount -t tmpfs -o size=8m none FOLDER
    python benchmarks/store_faults.py requests 300 every fifth request to an object store fails while keyframes are
                                                   written and read: 500, slow-down, timeouts, answers that are lost or
                                                   cut, listings of before

Everything happens to stores of small keyframes in a temporary folder. A fault that nobody notices ends the campaign.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from object_server import BUCKET, FAULTS, FaultyProxy, serving
from omegaconf import OmegaConf
from tqdm import tqdm

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError, Unreachable
from distill.frame import Told
from distill.grids import VoxelGrid
from distill.signals import Signal, described
from distill.signals.coarse import LevelBev
from distill.signals.columns import ColumnVoxels, CoveredVoxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.store.address import place_of
from distill.store.convert import Conversion
from distill.store.main import check
from distill.store.packing import Packing

GRID = VoxelGrid("small", "ego", (0.0, 0.0, 0.0), 1.0, (16, 16, 4))
NAMES = OCC3D_CLASSES.names
TOKENS = [f"{number:032x}" for number in range(40)]
SCENES = [f"scene-{number // 10}" for number in range(40)]
SIGNALS = ["voxels", "bev"]
Work = Callable[[Path, Connection], None]
Truth = dict[str, bytes]  # all that is told of each keyframe
# what may find a disk full
OPERATIONS = ((os, "fsync"), (Path, "open"), (Path, "mkdir"), (Path, "replace"), (Path, "rename"), (Path, "unlink"))


def said(token: str) -> CoveredVoxels:
    """What the teacher says of a keyframe: a linear head of 6 channels per column."""
    head = np.random.default_rng(0).normal(0, 2, (6, GRID.shape[2] * len(NAMES)))
    features = np.random.default_rng(int(token, 16)).normal(0, 1, (*GRID.shape[:2], 6))
    logits = torch.from_numpy(features @ head).view(*GRID.shape, len(NAMES))
    return CoveredVoxels(logits.float().log_softmax(-1).numpy(), np.ones(GRID.shape, bool))


def open_writer(path: Path | str) -> StoreWriter:
    """Of the store at `path`, made if it is not there."""
    signals: list[Signal] = [ColumnVoxels.fitted(said(TOKENS[0]), 0.25, GRID, NAMES), LevelBev(GRID, NAMES)]
    identity = StoreIdentity("campaign", "", {}, GRID, NAMES, described(signals))
    if place_of(path).empty():
        StoreWriter.create(path, identity, TOKENS, SCENES, signals)
    return StoreWriter.open(path, identity, TOKENS, SCENES)


def write(writer: StoreWriter, token: str) -> None:
    """Write a keyframe."""
    voxels = said(token)
    bev_XYC = bev_log_probs(torch.from_numpy(voxels.log_probs_XYZC), len(NAMES) - 1).numpy()
    semantics_XYZ = voxels.log_probs_XYZC.argmax(-1).astype(np.uint8)
    writer.write(token, {"voxels": voxels, "bev": bev_XYC}, semantics_XYZ, voxels.covered_XYZ, np.ones(8, np.uint32))


def dump(folder: Path, told: Connection) -> None:
    """Write what is missing, then others again, telling of each keyframe before and after."""
    writer = open_writer(folder / "killed.zarr")
    again = random.sample(TOKENS, len(TOKENS))
    for token in (*writer.missing(TOKENS), *again):
        told.send((token, False))
        write(writer, token)
        told.send((token, True))


def pack(folder: Path, _: Connection) -> None:
    """Pack what another has written."""
    with contextlib.redirect_stderr(io.StringIO()):
        Packing(open_writer(folder / "killed.zarr").store).run()


def convert(folder: Path, _: Connection) -> None:
    """Go on with the conversion of a store that is packed."""
    with contextlib.redirect_stderr(io.StringIO()):
        conversion(folder / "undisturbed.zarr", folder / "converted.zarr").run(threads=1)


def conversion(source: Path, target: Path) -> Conversion:
    """A copy."""
    asked = OmegaConf.create({"path": str(target), "encoding": "same", "step": 0.25, "keep": "same"})
    return Conversion.open([TeacherStore(source)], asked, None)[0]


def fingerprint(told: Told) -> bytes:
    """All that was told of a keyframe."""
    return b"".join(np.asarray(value).tobytes() for record in told.signals.values() for value in vars(record).values())


def expected(folder: Path) -> Truth:
    """What an undisturbed store tells of each keyframe."""
    writer = open_writer(folder / "undisturbed.zarr")
    for token in TOKENS:
        write(writer, token)
    store = TeacherStore(folder / "undisturbed.zarr")
    told = {token: fingerprint(store.told(token, SIGNALS, coverage=True)) for token in TOKENS}
    packing = Packing(store)
    for group in packing.groups(store.look())[::2]:
        packing.pack(group)
    return told


def present(path: Path, truth: Truth) -> set[str]:
    """The keyframes in a store, all of which are what was said."""
    if not path.exists():
        return set()
    store = TeacherStore(path)
    for token in store.present:
        assert fingerprint(store.told(token, SIGNALS, coverage=True)) == truth[token], f"not what was said: {token}"
    return set(store.present)


def killed(works: tuple[Work, ...], folder: Path) -> tuple[set[str], set[str]]:
    """Kill all who do this at once; the keyframes that were written, and the one that was being written, if any."""
    context = multiprocessing.get_context("fork")
    heard, told = context.Pipe(duplex=False)
    processes = [context.Process(target=work, args=(folder, told)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        time.sleep(random.random() * 0.4)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    told.close()
    durable, in_flight = set[str](), set[str]()
    with contextlib.suppress(EOFError):
        while heard.poll():
            token, done = heard.recv()
            (durable if done else in_flight).add(token)
            in_flight -= {token} if done else set()
    return durable, in_flight


def kills(count: int, folder: Path) -> None:
    """Kill writers; no keyframe may be present that is not whole, none be lost that was said to be durable."""
    truth, filled, of = expected(folder), 0, Counter[str]()
    durable = {folder / name: set[str]() for name in ("killed.zarr", "converted.zarr")}
    with tqdm(desc="kills", total=count) as progress:
        while of.total() < count:
            works: tuple[Work, ...] = random.choice(((dump,), (dump, pack), (pack,), (convert,)))
            path = folder / ("converted.zarr" if convert in works else "killed.zarr")
            written, in_flight = killed(works, folder)
            found = present(path, truth)
            lost = (durable[path] | written) - in_flight - found
            assert not lost, f"lost: {lost}"
            durable[path] = found
            if len(found) == len(TOKENS) and (convert in works or random.random() < 0.1):
                shutil.rmtree(path)
                durable[path], filled = set(), filled + 1
            of.update(work.__name__ for work in works)
            progress.update(len(works))
    told = ", ".join(f"{number} of {name}" for name, number in sorted(of.items()))
    print(f"{of.total()} kills ({told}), {filled} stores filled: 0 falsely present, 0 lost beyond what was in flight")


class FullAt(contextlib.AbstractContextManager[None]):
    """A block whose `step`-th change of files finds the disk full; whether it came so far is in `met`."""

    def __init__(self, step: int) -> None:
        self.left, self.met, self._patches = step, False, contextlib.ExitStack()

    def __enter__(self) -> None:
        for owner, name in OPERATIONS:
            self._patches.enter_context(mock.patch.object(owner, name, self._failing(getattr(owner, name))))

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _failing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if original.__name__ != "open" or "w" in f"{args[1:]}{kwargs.get('mode')}":
                self.left -= 1
                if not self.left:
                    self.met = True
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return original(*args, **kwargs)

        return call


class Ballast(contextlib.AbstractContextManager[None]):
    """A block in which a file takes all of a file system but `left` bytes."""

    def __init__(self, folder: Path, left: int) -> None:
        self.file, self.left = folder / "ballast", left

    def __enter__(self) -> None:
        free = os.statvfs(self.file.parent).f_bavail * os.statvfs(self.file.parent).f_frsize
        with self.file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - self.left, 1))

    def __exit__(self, *_: object) -> None:
        self.file.unlink()


def begin(path: Path) -> None:
    """Make a store and write its first keyframe."""
    write(open_writer(path), TOKENS[0])


def dump_more(path: Path) -> None:
    """Write two keyframes that are missing and one again."""
    writer = open_writer(path)
    for token in (*TOKENS[20:22], TOKENS[0]):
        write(writer, token)


def pack_all(path: Path) -> None:
    """Pack whatever is there."""
    Packing(open_writer(path).store).run()


def convert_it(path: Path) -> None:
    """Make a copy beside it."""
    conversion(path.with_name("half.zarr"), path).run(threads=1)


# what may find the disk full, on which store, and how many keyframes may be absent then
DISTURBED: dict[Callable[[Path], None], tuple[str | None, int]] = {
    begin: (None, 1),
    dump_more: ("half.zarr", 1),
    pack_all: ("half.zarr", 0),
    convert_it: (None, 0),
}


def disturb(work: Callable[[Path], None], fault: contextlib.AbstractContextManager, folder: Path, truth: Truth) -> bool:
    """Do something while a disk is full, and again when it no longer is; whether it was refused.

    Args:
        work: one of `DISTURBED`.
        fault: a block in which the disk is full.
        folder: has a `half.zarr` (`half`), and gets another store.
        truth: see `expected`.
    """
    path, (source, in_flight) = folder / "disturbed.zarr", DISTURBED[work]
    shutil.rmtree(path, ignore_errors=True)
    if source:
        shutil.copytree(folder / source, path)
    before, refused = present(path, truth), False
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            with fault:
                work(path)
        except InputError as error:
            refused = True
            assert "No space left on device" in str(error), error
            assert "\n" not in str(error), error
        assert len(before - present(path, truth)) <= in_flight, f"{work.__name__} has lost keyframes"
        work(path)
        assert present(path, truth) >= before, f"{work.__name__} did not go on"
    return refused


def half(folder: Path, target: Path) -> Truth:
    """A store of six keyframes: four in a pack, of which one was written again, and two beside it."""
    truth, writer = expected(folder), open_writer(target)
    for token in TOKENS[:4]:
        write(writer, token)
    Packing(writer.store).run()
    for token in (TOKENS[3], *TOKENS[10:12]):
        write(writer, token)
    return truth


def full(stride: int, folder: Path) -> None:
    """Let every so many file operations find the disk full."""
    truth, met = half(folder, folder / "half.zarr"), Counter[str]()
    for work in tqdm(DISTURBED, desc="full"):
        for step in itertools.count(1, stride):
            fault = FullAt(step)
            refused = disturb(work, fault, folder, truth)
            assert refused == fault.met, f"{work.__name__} went on at operation {step}"
            if not fault.met:
                break
            met[work.__name__] += 1
    told = ", ".join(f"{number} of {name}" for name, number in met.items())
    print(f"{met.total()} file operations found the disk full ({told}): all were refused, none lost a keyframe")


def fills(count: int, folder: Path) -> None:
    """Let a small file system have room for a part of what is written."""
    with tempfile.TemporaryDirectory() as elsewhere:
        truth = half(Path(elsewhere), folder / "half.zarr")
    refused = Counter[str]()
    for _ in tqdm(range(count), desc="fills"):
        work = random.choice(list(DISTURBED))
        refused[work.__name__] += disturb(work, Ballast(folder, random.randrange(150_000)), folder, truth)
    told = ", ".join(f"{number} of {name}" for name, number in refused.items())
    print(f"{count} fillings, of which {refused.total()} were refused ({told}): none lost a keyframe")


def flips(count: int, folder: Path) -> None:
    """Flip bits; whoever reads is told, or reads what was written, and whoever verifies is told of those in packs."""
    truth = expected(folder)
    path = folder / "undisturbed.zarr"
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    packs = [file for file in files if file.suffix == ".zip"]
    told, harmless = 0, 0
    for _ in tqdm(range(count), desc="flips"):
        file = random.choice(random.choice((files, packs)))
        content = file.read_bytes()
        flipped = bytearray(content)
        where = random.choice((random.randrange(len(flipped)), random.randrange(min(4096, len(flipped)))))
        flipped[where if random.random() < 0.5 else -1 - where] ^= 1 << random.randrange(8)
        file.write_bytes(flipped)
        try:
            store = TeacherStore(path)
            if file in packs:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    assert any(check(store, TOKENS, threads=1)), f"not verified: {file}"
            for token in TOKENS:
                if token in store.present:
                    found = fingerprint(store.told(token, SIGNALS, coverage=True))
                    store.verify(token)
                    assert found == truth[token], f"silent: {file}"
            assert len(store.present) == len(TOKENS), f"silent: {file}"
            harmless += 1
        except InputError:
            told += 1
        file.write_bytes(content)
    print(f"{count} flips: {told} were told, {harmless} changed nothing that is read, none was silent")


def reads(count: int, folder: Path) -> None:
    """Read keyframes; memory stays what it was."""
    expected(folder)
    store = TeacherStore(folder / "undisturbed.zarr")
    start = 0
    for index in tqdm(range(count), desc="reads"):
        store.told(TOKENS[index % len(TOKENS)], SIGNALS, coverage=True)
        if index == count // 10:
            start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    print(f"{count} reads: the peak of memory grew by {grown / 1024:.1f} MiB after the first tenth")


def requests(count: int, folder: Path) -> None:
    """Let requests fail; what is told of a keyframe is true, and what was said to be durable is there."""
    truth, address, durable, refused, failing = expected(folder), f"s3://{BUCKET}/faults.zarr", set[str](), 0, True

    def fault(*_: str) -> str | None:
        return random.choice(FAULTS) if failing and random.random() < 0.2 else None

    (folder / "server").mkdir()
    with serving(folder / "server") as found, FaultyProxy(found["AWS_ENDPOINT_URL"], fault) as proxy:
        os.environ |= {**found, "AWS_ENDPOINT_URL": proxy.endpoint, "AWS_TIMEOUT": "0.2s"}
        for number in tqdm(range(count), desc="requests"):
            token, failing = random.choice(TOKENS), number % 10 < 9 and number < count - 1
            try:
                write(open_writer(address), token)
                durable.add(token)
                store = TeacherStore(address)
                assert failing or durable <= store.present, f"lost: {durable - store.present}"
                chosen = sorted(store.present)
                for each in chosen if not failing else random.sample(chosen, min(2, len(chosen))):
                    assert fingerprint(store.told(each, SIGNALS, coverage=True)) == truth[each], f"false: {each}"
            except (InputError, Unreachable) as error:
                assert failing, error
                durable.discard(token)
                refused += 1
    faults = {name: times for name, times in proxy.counts.items() if name is not None}
    print(f"{count} requests for a keyframe, {refused} refused in one line: none false, none lost; faults: {faults}")


def main() -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    campaigns = {"kills": kills, "flips": flips, "reads": reads, "full": full, "fills": fills, "requests": requests}
    parser.add_argument("campaign", choices=campaigns)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        campaigns[options.campaign](options.count, Path(folder))


if __name__ == "__main__":
    main()
