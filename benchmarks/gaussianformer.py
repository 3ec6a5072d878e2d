"""What GaussianFormer-2 and its kernels cost at full size, each kernel next to its torch reference on the same device.

    python benchmarks/gaussianformer.py [--device cuda] [--threads 2] [--repeats 3] [--no-reference] [NAME ...]

Full size is 25 600 Gaussians, 640 000 voxels and six images of 864 x 1600; values are random (--seed). Wall time is the
median of several runs after one to warm up, CPU time the mean of all threads together; peak memory is what one run
needs beside its inputs.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Generator, Tensor

from distill.grids import LIDAR_MOUNT, OCC3D, SURROUNDOCC
from kernels.deformable_aggregation import deformable_aggregation
from kernels.dispatch import only
from kernels.farthest_points import farthest_points
from kernels.splat import splat
from kernels.submanifold import find_neighbours, submanifold_conv
from student.evaluation.cost import cpu_name
from teacher_dump.teachers.gaussianformer.draws import SeededDraws

GAUSSIANS = 25_600
LEVELS = ((108, 200), (54, 100), (27, 50), (14, 25))  # rows and columns
LOWER, UPPER = torch.tensor(SURROUNDOCC.lower), torch.tensor(SURROUNDOCC.upper)


def scattered(count: int, generator: Generator) -> Tensor:
    """Points anywhere in the range, metres, (count, 3)."""
    return LOWER + (UPPER - LOWER) * torch.rand(count, 3, generator=generator)


def splatting(device: torch.device, generator: Generator, points: int) -> Callable[[], object]:
    """The `points` voxels nearest to the car; with all of them, 205 million pairs of Gaussian and voxel."""
    voxels_V3 = torch.from_numpy(SURROUNDOCC.centres()).float().reshape(-1, 3)
    voxels_V3 = voxels_V3[voxels_V3[:, :2].norm(dim=1).argsort()[:points].sort().values]
    means_G3 = scattered(GAUSSIANS, generator)
    scales_G3 = 0.01 + 1.79 * torch.sigmoid(1.5 * torch.randn(GAUSSIANS, 3, generator=generator))
    axes_G33 = torch.linalg.qr(torch.randn(GAUSSIANS, 3, 3, generator=generator)).Q / scales_G3[:, :, None]
    radius_G = (scales_G3.amax(1) * 4 / SURROUNDOCC.voxel_size).ceil().int()
    weights_G = torch.rand(GAUSSIANS, generator=generator) / ((2 * math.pi) ** 1.5 * scales_G3.prod(1))
    semantics_GS = torch.randn(GAUSSIANS, 18, generator=generator).softmax(1)
    inputs = (voxels_V3, means_G3, axes_G33.mT @ axes_G33, radius_G, weights_G, semantics_GS)
    inputs = tuple(tensor.to(device) for tensor in inputs)
    return lambda: splat(*inputs, SURROUNDOCC.lower, SURROUNDOCC.voxel_size)


def aggregation(device: torch.device, generator: Generator) -> Callable[[], object]:
    """13 key points of each Gaussian in six images of 128 channels; a point is seen by 1.1 of them."""
    maps = [torch.randn(6, 128, *size, generator=generator).to(device) for size in LEVELS]
    uv_GPN2 = torch.rand(GAUSSIANS, 13, 6, 2, generator=generator)
    uv_GPN2[torch.rand(GAUSSIANS, 13, 6, generator=generator) > 1.1 / 6] = 2.0
    uv_GPN2 = uv_GPN2.to(device)
    weights_GPNLA = torch.rand(GAUSSIANS, 13, 6, 4, 4, generator=generator).to(device)
    return lambda: deformable_aggregation(maps, uv_GPN2, weights_GPNLA)


def crowded_cells(generator: Generator) -> Tensor:
    """Cells of 1 m, a quarter of them in use, (G, 3): some 14 400 different ones."""
    return torch.cat([torch.randint(0, size, (GAUSSIANS, 1), generator=generator) for size in (100, 25, 8)], 1)


def neighbours(device: torch.device, generator: Generator) -> Callable[[], object]:
    """The pairs of one block's convolutions."""
    cells_G3 = crowded_cells(generator).to(device)
    return lambda: find_neighbours(cells_G3, (100, 100, 8), 5, "single")


def convolution(device: torch.device, generator: Generator) -> Callable[[], object]:
    """One 5 x 5 x 5 convolution, 128 to 128 channels."""
    pairs = find_neighbours(crowded_cells(generator).to(device), (100, 100, 8), 5, "single")
    features_GC = torch.randn(GAUSSIANS, 128, generator=generator).to(device)
    weight_OKKKI = torch.randn(128, 5, 5, 5, 128, generator=generator).to(device) / 64
    return lambda: submanifold_conv(features_GC, weight_OKKKI, None, pairs)


def sampling(device: torch.device, generator: Generator) -> Callable[[], object]:
    """19 200 of 107 000 points."""
    points_P3 = scattered(107_000, generator).to(device)
    return lambda: farthest_points(points_P3, 19_200, 1)


def teacher(device: torch.device, generator: Generator) -> Callable[[], object]:
    """Images to log-probabilities at the voxels of Occ3D, as `occ-dump` asks; random weights, so random Gaussians."""
    with initialize_config_module("conf", version_base="1.3"):
        overrides = ["teacher=gaussianformer2_25600", "teacher.checkpoint=none", "data=nuscenes", "data.root=none"]
        network = instantiate(compose("dump", overrides).teacher.network).eval().to(device)
    lifter = network.lifter
    for parameter in (lifter.anchor.data, lifter.random_anchors.data, lifter.projection[1].weight.data):
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images_N3HW = torch.randn(6, 3, 864, 1600, generator=generator).to(device)
    lidar2img_N44 = rig().to(device)
    points_V3 = torch.from_numpy(OCC3D.centres()).float().reshape(-1, 3).to(device) - torch.tensor(LIDAR_MOUNT).to(
        device
    )

    @torch.inference_mode()
    def predict() -> Tensor:
        return network(images_N3HW, lidar2img_N44, SeededDraws(0, "benchmark")).log_probs(points_V3)

    return predict


def rig() -> Tensor:
    """Six cameras around the LiDAR, as many degrees apart; (6, 4, 4)."""
    matrices = torch.eye(4).repeat(6, 1, 1)
    intrinsics = torch.tensor([[1266.0, 0.0, 800.0], [0.0, 1266.0, 432.0], [0.0, 0.0, 1.0]])
    for matrix, yaw in zip(matrices, torch.arange(6) * math.pi / 3, strict=True):
        forward = torch.stack([yaw.cos(), yaw.sin(), torch.tensor(0.0)])
        right = torch.stack([yaw.sin(), -yaw.cos(), torch.tensor(0.0)])
        matrix[:3, :3] = intrinsics @ torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward])
    return matrices


class Case(NamedTuple):
    """One row: what makes the inputs and returns the call, and whether it is compared with the references."""

    prepare: Callable[[torch.device, Generator], Callable[[], object]]
    compared: bool = True


CASES = {
    "splat": Case(lambda device, generator: splatting(device, generator, 640_000)),
    "splat, 90 000 voxels": Case(lambda device, generator: splatting(device, generator, 90_000)),
    "deformable_aggregation": Case(aggregation),
    "submanifold, neighbours": Case(neighbours),
    "submanifold, one convolution": Case(convolution),
    "farthest_points": Case(sampling),
    "whole teacher": Case(teacher, compared=False),
}


def resident(field: str) -> int:
    """Memory of this process in bytes, now (VmRSS) or at most (VmHWM); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Memory that one call takes beside what is there already."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed counts again
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def measure(call: Callable[[], object], device: torch.device, repeats: int) -> str:
    """Wall ms, CPU ms and peak MB of a call."""
    peak = peak_bytes(call, device)
    walls, cpu_start = [], time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu_start) / repeats
    return f"{1e3 * statistics.median(walls):11.1f}{1e3 * cpu:11.1f}{peak / 1e6:9.0f}"


def main() -> None:
    """Print one line per kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--no-reference", action="store_true", help="leave the references out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hardware = torch.cuda.get_device_name() if options.device.type == "cuda" else cpu_name()
    print(f"{hardware}, {options.threads} threads, torch {torch.__version__}, seed {options.seed}")
    column = f"{'wall ms':>11}{'CPU ms':>11}{'MB':>9}"
    print(f"{'':30}{column}" + ("" if options.no_reference else f"   reference{column[12:]}"))
    for name in options.names:
        prepare, compared = CASES[name]
        call = prepare(options.device, torch.Generator().manual_seed(options.seed))
        call()  # compiles
        line = f"{name:30}{measure(call, options.device, options.repeats)}"
        if compared and not options.no_reference:
            with only("reference"):
                line += f"   {measure(call, options.device, options.repeats)}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
