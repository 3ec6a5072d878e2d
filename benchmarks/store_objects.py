"""How many keyframes a second are read from an object store on this machine, by one process and by two.

    python benchmarks/store_objects.py                 keyframes of the size of the demo teacher's, by columns
    python benchmarks/store_objects.py --count 400     more of them

Each row is the best of three passes over all keyframes: their voxels, columns and coverage, decoded to what travels to
the student. "client" and "server" are milliseconds of one core that a keyframe takes of the reader and of the object
store, which share the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from object_server import BUCKET, serving
from store import smooth_noise

from distill.classes import OCC3D_CLASSES
from distill.grids import OCC3D
from distill.signals import described
from distill.signals.coarse import LevelBev
from distill.signals.columns import ColumnVoxels, CoveredVoxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.store.cache import Cache
from distill.store.packing import Packing
from student.evaluation.cost import cpu_name

NAMES = OCC3D_CLASSES.names
_OPENED: dict[tuple[str, str | None], TeacherStore] = {}


def said(seed: int) -> CoveredVoxels:
    """What a teacher with a linear head says: columns of 64 features that change over some voxels."""
    generator = torch.Generator().manual_seed(seed)
    x, y, z = OCC3D.shape
    features = torch.stack([smooth_noise(generator, (x, y), 3 + channel) for channel in range(16)], -1)
    head = torch.randn(16, z * len(NAMES), generator=torch.Generator().manual_seed(0)) / 3
    logits = (features @ head).view(x, y, z, len(NAMES))
    return CoveredVoxels(logits.log_softmax(-1).numpy(), np.ones(OCC3D.shape, bool))


def fill(address: str, tokens: list[str]) -> None:
    """Make a store at an address whose keyframes are copies of one."""
    signals = [ColumnVoxels.fitted(said(1), 0.25, OCC3D, NAMES), LevelBev(OCC3D, NAMES)]
    identity = StoreIdentity("benchmark", "", {}, OCC3D, NAMES, described(signals))
    scenes = [f"scene-{number // 40}" for number in range(len(tokens))]
    StoreWriter.create(address, identity, tokens, scenes, signals)
    writer = StoreWriter.open(address, identity, tokens, scenes)
    voxels = said(2)
    bev_XYC = torch.from_numpy(voxels.log_probs_XYZC).logsumexp(2).log_softmax(-1).numpy()
    semantics_XYZ = voxels.log_probs_XYZC.argmax(-1).astype(np.uint8)
    writer.write(
        tokens[0], {"voxels": voxels, "bev": bev_XYC}, semantics_XYZ, voxels.covered_XYZ, np.ones(8, np.uint32)
    )
    chunks = writer.store.chunks(tokens[0], list(writer.store.arrays))
    for token in tokens[1:]:
        writer.put(token, chunks)


def read(address: str, cache: str | None, tokens: list[str]) -> float:
    """Read keyframes in this process; the seconds of one core that it took."""
    if (address, cache) not in _OPENED:
        torch.set_num_threads(1)
        _OPENED[address, cache] = TeacherStore(address, None if cache is None else Cache(cache, 10.0))
    store, began = _OPENED[address, cache], time.process_time()
    for token in tokens:
        store.told(token, ["voxels", "bev"], coverage=True)
    return time.process_time() - began


def measure(name: str, address: str, tokens: list[str], processes: int, server: int, cache: str | None = None) -> None:
    """Print a row."""
    shares = [tokens[number::processes] for number in range(processes)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(read, [address] * processes, [cache] * processes, shares))  # connections are made, caches filled
        rows = []
        for _ in range(3):
            before, began = _cpu_of(server), time.perf_counter()
            client = sum(pool.map(read, [address] * processes, [cache] * processes, shares))
            seconds = time.perf_counter() - began
            rows.append((len(tokens) / seconds, client / len(tokens), (_cpu_of(server) - before) / len(tokens)))
    rate, client, serving_s = max(rows)
    print(f"{name:26s}{processes:10d}{rate:14.0f}{1e3 * client:12.1f}{1e3 * serving_s:12.1f}", flush=True)


def _cpu_of(process: int) -> float:
    """Seconds of one core that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=80, help="keyframes, 40 to a scene")
    options = parser.parse_args()
    tokens = [f"{number:032x}" for number in range(options.count)]
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as environment:
        os.environ |= environment
        server = int(environment["PROCESS"])
        loose, packed, local = (f"s3://{BUCKET}/loose.zarr", f"s3://{BUCKET}/packed.zarr", f"{folder}/local.zarr")
        for address in (loose, packed, local):
            fill(address, tokens)
        Packing(TeacherStore(packed)).run()
        store = TeacherStore(loose)
        print(f"{store.summary()}; {os.cpu_count()} cores, {cpu_name()}")
        print(f"{'':26s}{'processes':>10s}{'keyframes/s':>14s}{'client ms':>12s}{'server ms':>12s}")
        for processes in (1, 2):
            measure("local disk", local, tokens, processes, server)
            measure("object store, files", loose, tokens, processes, server)
            measure("object store, packs", packed, tokens, processes, server)
            measure("packs, read from the cache", packed, tokens, processes, server, f"{folder}/cache")


if __name__ == "__main__":
    main()
