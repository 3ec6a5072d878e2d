"""What a packed store of many keyframes costs: files, opening, memory, listing, and reading at random.

    python benchmarks/store_packs.py stores/many.zarr                     34 149 keyframes, as nuScenes has
    python benchmarks/store_packs.py stores/many.zarr --keyframes 1000000

Makes the store at that path, if it is not there: scenes of 40 keyframes whose arrays are real but small, and all alike,
packed from the start. One core; the files are in the page cache; memory is what the store adds to its libraries.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from distill.classes import OCC3D_CLASSES
from distill.grids import VoxelGrid
from distill.signals import Signal, described
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.columns import CoveredVoxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.store.packing import Packing
from distill.store.packs import Pack
from student.evaluation.cost import cpu_name

GRID = VoxelGrid("small", "ego", (0.0, 0.0, 0.0), 1.0, (8, 8, 4))
SCENE = 40


def make(path: Path, count: int) -> None:
    """A store whose packs are made directly: ten files of each keyframe would take longer than all that is measured."""
    names = OCC3D_CLASSES.names
    signals: list[Signal] = [LevelVoxels(GRID, names), LevelBev(GRID, names)]
    identity = StoreIdentity("benchmark", "", {}, GRID, names, described(signals))
    tokens = [f"{number:032x}" for number in np.random.default_rng(0).permutation(count).tolist()]
    scenes = [f"scene-{row // SCENE:05d}" for row in range(count)]
    writer = StoreWriter.open(path, identity, tokens, scenes)
    log_probs = np.random.default_rng(0).normal(0, 3, (*GRID.shape, len(names))).astype(np.float32)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    semantics, everywhere = log_probs.argmax(-1).astype(np.uint8), np.ones(GRID.shape, bool)
    said = {"voxels": CoveredVoxels(log_probs, everywhere), "bev": log_probs[:, :, 0]}
    writer.write(tokens[0], said, semantics, everywhere, np.ones(8, np.uint32))
    packing = Packing(writer.store)
    sample = packing.sample(tokens[0])
    for first in tqdm(range(0, count, SCENE), desc="packs"):
        pack = Pack(first, min(first + SCENE, count) - 1)
        packing.write(pack, [sample] * len(pack.rows))
    packing.run()  # what is left of the first keyframe goes


def resident() -> float:
    """Of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Clock:
    """Of what is done since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def tell(self, name: str, count: int = 1) -> None:
        """Print seconds of a clock on the wall, and of the processor, which others do not lengthen."""
        wall, cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        unit, scale = ("s", 1) if count == 1 else (f"ms each of {count}", 1e3 / count)
        row(name, f"{scale * wall:.3f} {unit}, {scale * cpu:.3f} of them on the processor")


def measure(path: Path, reads: int) -> None:
    """Print what opening and reading cost."""
    before, clock = resident(), Clock()
    store = TeacherStore(path)
    clock.tell("opening")
    row("memory that it took", f"{resident() - before:.0f} MB")
    clock = Clock()
    StoreWriter(store).missing(store.tokens)
    clock.tell("listing what is missing")
    tokens = np.random.default_rng(0).choice(store.tokens, reads).tolist()
    for state in ("first", "again"):
        clock = Clock()
        for token in tokens:
            store.told(token, ["voxels", "bev"], coverage=True)
        clock.tell(f"reading at random, {state}", reads)
    clock = Clock()
    store.sizes()
    clock.tell("sizes, by the indexes of all packs")
    row("memory with these indexes", f"{resident() - before:.0f} MB")


def row(name: str, told: str) -> None:
    """Print a row of the table."""
    print(f"{name:40s}{told}", flush=True)


def main() -> None:
    """Make a store and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--keyframes", type=int, default=34149)
    parser.add_argument("--reads", type=int, default=5000)
    options = parser.parse_args()
    if not options.store.exists():
        make(options.store, options.keyframes)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # without the memory that this took
    files = [file.stat().st_size for file in options.store.rglob("*") if file.is_file()]
    print(f"{cpu_name()}; {len(files)} files, {sum(files) / 1e6:.0f} MB")
    measure(options.store, options.reads)


if __name__ == "__main__":
    main()
