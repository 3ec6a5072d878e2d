"""All metrics together: several processes are one, bit for bit, and memory is constant."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from distill.classes import OCC3D_CLASSES
from distill.grids import VoxelGrid
from distill.metrics import (
    OCC3D_17,
    BandScore,
    Calibration,
    Flicker,
    FScore,
    OccupancyScore,
    RayIoU,
    distance_bands,
    height_bands,
)

GRID = VoxelGrid("small", "ego", (-4.0, -4.0, -0.8), 0.4, (20, 20, 4))
SCENES = {"a": 3, "b": 2, "c": 4}
KEYFRAMES = [(scene, k) for scene, count in SCENES.items() for k in range(count)]


def keyframe(scene: str, k: int) -> dict:
    """All that any metric wants to know, by name."""
    random = np.random.default_rng([ord(scene), k])
    semantics, prediction = (
        np.where(random.random(GRID.shape) < 0.1, random.integers(0, 17, GRID.shape), 17).astype(np.uint8)
        for _ in range(2)
    )
    ego2global = np.eye(4)
    ego2global[0, 3] = 0.7 * k
    return {
        "prediction_XYZ": np.where(random.random(GRID.shape) < 0.5, semantics, prediction),
        "semantics_XYZ": semantics,
        "mask_XYZ": random.random(GRID.shape) < 0.6,
        "probabilities_XYZC": random.dirichlet(np.full(18, 0.1), GRID.shape).astype(np.float32),
        "origins_T3": random.uniform(-2, 2, (2, 3)) * [1, 1, 0.2],
        "token": f"{scene}{k}",
        "previous": f"{scene}{k - 1}" if k else "",
        "grid2global_44": ego2global,
    }


def metrics() -> MetricCollection:
    # without groups: torchmetrics would let metrics share a state that is equal after the first keyframe
    return MetricCollection(
        {
            "occupancy": OccupancyScore(OCC3D_CLASSES),
            "rays": RayIoU(GRID, OCC3D_CLASSES),
            "f-score": FScore(GRID, OCC3D_CLASSES, 0.6),
            "calibration": Calibration(OCC3D_CLASSES, 15),
            "distance": BandScore(OCC3D_17, distance_bands(GRID, (0, 2, 4))),
            "height": BandScore(OCC3D_17, height_bands(GRID, (-1, 0, 1))),
            "flicker": Flicker(GRID, OCC3D_CLASSES),
        },
        compute_groups=False,
    )


def measure(keyframes: list[tuple[str, int]]) -> MetricCollection:
    total = metrics()
    for scene, k in keyframes:
        total.update(**keyframe(scene, k))
    return total


def on_rank(rank: int, folder: Path, shares: list[list[tuple[str, int]]]) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares))
    mine = measure(shares[rank])
    before = {name: int(metric.keyframes) for name, metric in mine.items()}
    result = {name: value.clone() for name, value in mine.compute().items()}
    for name, metric in mine.items():  # the sums do not stay in the ranks: computing again does not count twice
        assert int(metric.keyframes) == before[name] == len(shares[rank])
        metric.sync()
        assert int(metric.keyframes) == len(KEYFRAMES)
        metric.unsync()
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


SHARES = {
    "scenes": [[at for at in KEYFRAMES if at[0] in names] for names in ("b", "ac")],
    "uneven, one idle": [KEYFRAMES[:5], [], KEYFRAMES[5:]],
    "every other": [KEYFRAMES[0::2], KEYFRAMES[1::2]],
}


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics' word to the idle rank
def test_processes_return_what_one_returns_bit_for_bit(tmp_path, shares):
    expected = measure(KEYFRAMES).compute()
    mp.start_processes(on_rank, (tmp_path, shares), nprocs=len(shares), start_method="fork")
    scenes = [scene for share in shares for scene in {scene for scene, _ in share}]
    whole_scenes = len(scenes) == len(set(scenes))
    for rank in range(len(shares)):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys() and len(found) > 20
        for name, value in expected.items():
            if whole_scenes or not name.startswith("flicker"):
                torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
        assert found["flicker pairs"] + found["flicker unpaired"] == len(KEYFRAMES) - len(SCENES)
        assert (found["flicker unpaired"] == 0) == whole_scenes


def test_the_order_of_keyframes_does_not_matter():
    order = [KEYFRAMES[i] for i in np.random.default_rng(0).permutation(len(KEYFRAMES))]
    first, second = measure(KEYFRAMES).compute(), measure(order).compute()
    for name in first:
        if not name.startswith("flicker"):
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def test_memory_does_not_grow():
    total = measure(KEYFRAMES[:1])
    size = len(pickle.dumps(total))
    for at in KEYFRAMES[1:]:
        total.update(**keyframe(*at))
        assert len(pickle.dumps(total)) == size


def test_values_of_single_keyframes_while_counting():
    """`forward` returns one keyframe's result and goes on counting."""
    total = metrics()
    for at in KEYFRAMES[:3]:
        alone, expected = total(**keyframe(*at)), measure([at]).compute()
        for name in ("RayIoU", "F-score", "ECE", "distance mIoU"):
            torch.testing.assert_close(alone[name], expected[name], rtol=0, atol=0, equal_nan=True)
    for name, value in measure(KEYFRAMES[:3]).compute().items():
        torch.testing.assert_close(total.compute()[name], value, rtol=0, atol=0, equal_nan=True)


def test_tensors_and_arrays_count_alike():
    arrays = keyframe("a", 0)
    tensors = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in arrays.items()}
    first, second = metrics(), metrics()
    first.update(**arrays)
    second.update(**tensors | {"grid2global_44": arrays["grid2global_44"]})
    for name, value in first.compute().items():
        torch.testing.assert_close(second.compute()[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_returns_what_the_cpu_returns():
    total = metrics().to("cuda")
    for at in KEYFRAMES:
        total.update(**keyframe(*at))
    for name, value in measure(KEYFRAMES).compute().items():
        torch.testing.assert_close(total.compute()[name].cpu(), value, rtol=0, atol=0, equal_nan=True)
