"""What each metric costs per keyframe on the CPU, on the Occ3D grid.

    python benchmarks/metrics.py                      a synthetic street (--seed)
    python benchmarks/metrics.py --labels labels.npz  real Occ3D labels; the prediction is a disturbed copy

Times are wall clock, best and median of several updates after two to warm up (numba compiles in the first).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distill.classes import OCC3D_CLASSES
from distill.grids import OCC3D
from distill.metrics import (
    FLASHOCC_DISTANCE,
    OCC3D_17,
    BandScore,
    Calibration,
    Flicker,
    FScore,
    OccupancyScore,
    RayIoU,
    count_confusion,
    distance_bands,
)
from student.evaluation.cost import cpu_name

FREE = OCC3D_CLASSES.free
ORIGINS = np.array([[0.985793 + x, 0.0, 1.84019] for x in np.linspace(-34, 34, 8)])


def street(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and camera mask: ground, two rows of houses, cars and trees; seen up to 25 m and 2.2 m high."""
    random = np.random.default_rng(seed)
    semantics = np.full(OCC3D.shape, FREE, dtype=np.uint8)
    semantics[:, :, 1] = 13
    semantics[:, 85:115, 1] = 11
    semantics[:, [60, 61, 140, 141], 2:] = 15
    for x, y in zip(random.integers(0, 190, 40), random.integers(65, 135, 40), strict=True):
        length, width, height, name = (10, 5, 4, 4) if 85 < y < 115 else (2, 2, 10, 16)
        semantics[x : x + length, y : y + width, 2 : 2 + height] = name
    x, y, z = np.moveaxis(OCC3D.centres(), -1, 0)
    return semantics, (np.hypot(x, y) < 25) & (z < 2.2)


def disturbed(semantics: np.ndarray, seed: int) -> np.ndarray:
    """A prediction: one voxel off, with 2 % of the voxels of other classes."""
    random = np.random.default_rng(seed)
    wrong = random.random(semantics.shape) < 0.02
    return np.where(wrong, random.integers(0, 18, semantics.shape), np.roll(semantics, 1, 0)).astype(np.uint8)


def times_ms(update: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best and median duration, milliseconds."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        update()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times[2:]), statistics.median(times[2:])


def updates(
    prediction: np.ndarray, semantics: np.ndarray, mask: np.ndarray, probabilities: np.ndarray
) -> dict[str, Callable[[], object]]:
    """One call counts one keyframe."""
    rays, f_score = RayIoU(OCC3D, OCC3D_CLASSES), FScore(OCC3D, OCC3D_CLASSES, FLASHOCC_DISTANCE)
    score, calibration = OccupancyScore(OCC3D_CLASSES), Calibration(OCC3D_CLASSES, 15)
    bands = BandScore(OCC3D_17, distance_bands(OCC3D, (0, 10, 20, 40, float("inf"))))
    flicker, pose, everywhere = Flicker(OCC3D, OCC3D_CLASSES), np.eye(4), np.ones_like(mask)
    tensors = [torch.from_numpy(volume) for volume in (prediction, semantics, everywhere)]
    return {
        "count_confusion, all voxels": lambda: count_confusion(tensors[0], tensors[1], tensors[2], OCC3D_CLASSES),
        "OccupancyScore, all voxels": lambda: score.update(prediction, semantics, everywhere),
        "OccupancyScore, mask_camera": lambda: score.update(prediction, semantics, mask),
        "BandScore, 4 distances": lambda: bands.update(prediction, semantics, mask),
        f"RayIoU, {len(ORIGINS)} origins": lambda: rays.update(prediction, semantics, ORIGINS),
        "FScore": lambda: f_score.update(prediction, semantics, mask),
        "Calibration": lambda: calibration.update(probabilities, semantics, mask),
        "Flicker": lambda: flicker.update(prediction, semantics, mask, "a", "a", pose),
    }


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    semantics, mask = street(options.seed)
    if options.labels:
        labels = np.load(options.labels)
        semantics, mask = labels["semantics"], labels["mask_camera"].astype(bool)
    prediction = disturbed(semantics, options.seed)
    probabilities = np.full((*OCC3D.shape, len(OCC3D_CLASSES)), 0.01, dtype=np.float32)
    np.put_along_axis(probabilities, prediction[..., None].astype(np.int64), 0.83, axis=-1)

    source = options.labels or f"synthetic, seed {options.seed}"
    print(f"{source}: {(semantics != FREE).mean():.1%} occupied, {mask.mean():.1%} in mask_camera")
    print(f"{torch.get_num_threads()} threads, {cpu_name()}")
    print(f"{'':30s}{'best ms':>10s}{'median ms':>11s}{'keyframes/s':>13s}")
    for name, update in updates(prediction, semantics, mask, probabilities).items():
        best, median = times_ms(update, options.repeats)
        print(f"{name:30s}{best:10.2f}{median:11.2f}{1e3 / median:13.0f}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
