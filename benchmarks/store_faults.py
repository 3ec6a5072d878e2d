"""What becomes of a store whose writers are killed, whose bits flip and that is read for hours.

    python benchmarks/store_faults.py kills 1000   a writer is killed at a random moment, another goes on
    python benchmarks/store_faults.py flips 1000   one bit of one file flips, and everything is read
    python benchmarks/store_faults.py reads 10000  keyframes are read one after the other

Everything happens to a store of small keyframes in a temporary folder. A fault that nobody notices ends the campaign.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Told
from distill.grids import VoxelGrid
from distill.signals import Signal, described
from distill.signals.coarse import LevelBev
from distill.signals.columns import ColumnVoxels, CoveredVoxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore

GRID = VoxelGrid("small", "ego", (0.0, 0.0, 0.0), 1.0, (16, 16, 4))
NAMES = OCC3D_CLASSES.names
TOKENS = [f"{number:032x}" for number in range(40)]
SIGNALS = ["voxels", "bev"]


def said(token: str) -> CoveredVoxels:
    """What the teacher says of a keyframe: a linear head of 6 channels per column."""
    head = np.random.default_rng(0).normal(0, 2, (6, GRID.shape[2] * len(NAMES)))
    features = np.random.default_rng(int(token, 16)).normal(0, 1, (*GRID.shape[:2], 6))
    logits = torch.from_numpy(features @ head).view(*GRID.shape, len(NAMES))
    return CoveredVoxels(logits.float().log_softmax(-1).numpy(), np.ones(GRID.shape, bool))


def open_writer(path: Path) -> StoreWriter:
    """Of the store at `path`, made if it is not there."""
    signals: list[Signal] = [ColumnVoxels.fitted(said(TOKENS[0]), 0.25, GRID, NAMES), LevelBev(GRID, NAMES)]
    identity = StoreIdentity("campaign", "", {}, GRID, NAMES, described(signals))
    if not path.exists():
        StoreWriter.create(path, identity, TOKENS, ["scene"] * len(TOKENS), signals)
    return StoreWriter.open(path, identity, TOKENS, ["scene"] * len(TOKENS))


def write(writer: StoreWriter, token: str) -> None:
    """Write a keyframe."""
    voxels = said(token)
    bev_XYC = bev_log_probs(torch.from_numpy(voxels.log_probs_XYZC), len(NAMES) - 1).numpy()
    semantics_XYZ = voxels.log_probs_XYZC.argmax(-1).astype(np.uint8)
    writer.write(token, {"voxels": voxels, "bev": bev_XYC}, semantics_XYZ, voxels.covered_XYZ, np.ones(8, np.uint32))


def write_missing(path: Path, written: Connection) -> None:
    """Write what is missing, telling of each keyframe that is durable."""
    writer = open_writer(path)
    for token in writer.missing(TOKENS):
        write(writer, token)
        written.send(token)


def fingerprint(told: Told) -> bytes:
    """All that was told of a keyframe."""
    return b"".join(np.asarray(value).tobytes() for record in told.signals.values() for value in vars(record).values())


def expected(folder: Path) -> dict[str, bytes]:
    """What an undisturbed store tells of each keyframe."""
    writer = open_writer(folder / "undisturbed.zarr")
    for token in TOKENS:
        write(writer, token)
    store = TeacherStore(folder / "undisturbed.zarr")
    return {token: fingerprint(store.told(token, SIGNALS, coverage=True)) for token in TOKENS}


def kills(count: int, folder: Path) -> None:
    """Kill writers; no keyframe may be present that is not whole, none be lost that was said to be durable."""
    truth, context = expected(folder), multiprocessing.get_context("fork")
    path, durable, starts = folder / "killed.zarr", set[str](), 0
    for _ in tqdm(range(count), desc="kills"):
        heard, written = context.Pipe(duplex=False)
        process = context.Process(target=write_missing, args=(path, written))
        process.start()
        time.sleep(random.random() * 0.5)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        written.close()
        while heard.poll():
            try:
                durable.add(heard.recv())
            except EOFError:
                break
        if not path.exists():
            continue
        store = TeacherStore(path)
        assert durable <= store.present, f"lost: {durable - store.present}"
        for token in store.present:
            assert fingerprint(store.told(token, SIGNALS, coverage=True)) == truth[token], f"not what was said: {token}"
        if len(store.present) == len(TOKENS):
            shutil.rmtree(path)
            durable, starts = set(), starts + 1
    print(f"{count} kills, {starts} stores filled: none false, none lost")


def flips(count: int, folder: Path) -> None:
    """Flip bits; whoever reads is told, or reads what was written."""
    truth = expected(folder)
    path = folder / "undisturbed.zarr"
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    told, harmless = 0, 0
    for _ in tqdm(range(count), desc="flips"):
        file = random.choice(files)
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
        file.write_bytes(flipped)
        try:
            store = TeacherStore(path)
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


def main() -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=["kills", "flips", "reads"])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        {"kills": kills, "flips": flips, "reads": reads}[options.campaign](options.count, Path(folder))


if __name__ == "__main__":
    main()
