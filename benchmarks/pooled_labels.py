"""What pooling the labels of a keyframe costs on one core, on the Occ3D grid.

    python benchmarks/pooled_labels.py                      a synthetic street (--seed)
    python benchmarks/pooled_labels.py --labels labels.npz  real Occ3D labels

Times are of one core's work, best and median of several keyframes after one to warm up (numba compiles in it).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from metrics import FREE, street

from kernels.pooled_labels import UNKNOWN, pooled_labels
from student.evaluation.cost import cpu_name

SCALES = (2, 4, 8)


def times_ms(labels_XYZ: torch.Tensor, scales: Sequence[int], repeats: int) -> tuple[float, float]:
    """Best and median over keyframes, milliseconds."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        for scale in scales:
            pooled_labels(labels_XYZ, scale, FREE)
        times.append(1e3 * (time.process_time() - start))
    return min(times[1:]), statistics.median(times[1:])


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    semantics, mask = street(options.seed)
    if options.labels:
        file = np.load(options.labels)
        semantics, mask = file["semantics"], file["mask_camera"].astype(bool)
    labels_XYZ = torch.from_numpy(np.where(mask, semantics, UNKNOWN).astype(np.uint8))
    print(f"{options.labels or f'synthetic, seed {options.seed}'}; one core, {cpu_name()}")
    print(f"{'':12s}{'best ms':>10s}{'median ms':>11s}{'keyframes/s':>13s}")
    for scales in (*[(scale,) for scale in SCALES], SCALES):
        best, median = times_ms(labels_XYZ, scales, options.repeats)
        name = ", ".join(f"1/{scale}" for scale in scales)
        print(f"{name:14s}{best:8.2f}{median:11.2f}{1e3 / median:13.0f}")


if __name__ == "__main__":
    main()
