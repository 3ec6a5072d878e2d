"""What rendering along rays costs, forward and backward: reading voxels, and marching through them.

python benchmarks/rendering.py [--device cuda] [--threads 1] [--rays 12000] [--samples 120]
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from torch import Tensor

from distill.classes import OCC3D_CLASSES
from distill.frame import Frame
from distill.grids import OCC3D
from distill.losses.objective import Lesson
from distill.losses.rendering import RayDepth, RayDistortion, RayEntropy, RaySemantics, voxel_rays
from distill.networks.prediction import Occupancy
from kernels.ray_march import march, reached
from student.evaluation.cost import device_name, milliseconds

FAR = 60.0


def seen(rays: int, batch: int) -> list[Tensor]:
    """Rays from 1.6 m above the ground, most of which look down a little, 2 to 45 m long."""
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(batch):
        yaw = 2 * math.pi * torch.rand(rays, generator=random).sort().values  # as in an image, side by side
        tilt = 0.35 * torch.rand(rays, generator=random) - 0.25
        origin = torch.tensor([0.9, 0.1, 1.6]) + 0.6 * torch.randn(rays, 3, generator=random)
        depth, label = 2 + 43 * torch.rand(rays, generator=random), torch.randint(1, 17, (rays,), generator=random)
        found.append(torch.column_stack([origin, yaw.cos(), yaw.sin(), tilt, depth, label]))
    return found


def main() -> None:
    """Print milliseconds of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--rays", default=12_000, type=int, help="of all frames: six cameras, 2000 each")
    parser.add_argument("--batch", default=1, type=int)
    parser.add_argument("--samples", default=120, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, shape = options.device, (options.batch, *OCC3D.shape)
    frame = Frame(token=["a"] * options.batch, rays=seen(options.rays // options.batch, options.batch)).to(device)
    logits = torch.randn(*shape, 18, generator=torch.Generator().manual_seed(1)).to(device)
    logits[..., 17] += 6
    logits.requires_grad_()
    rays, _, _ = voxel_rays(frame.rays, OCC3D)
    read = reached(shape, rays, FAR, options.samples)
    place = torch.where(read.flatten(), read.flatten().cumsum(0) - 1, -1).int().view(shape)
    density = torch.rand(int(read.sum()), device=device).requires_grad_()
    scores = torch.rand(len(density), 17, device=device).requires_grad_()
    at = {"weight": 1.0, "samples": options.samples, "far": FAR, "grid": OCC3D, "classes": OCC3D_CLASSES}
    terms = [RayDepth(form="silog", **at), RaySemantics(balance="log", **at), RayEntropy(**at), RayDistortion(**at)]

    def both() -> None:
        found = march(density, scores, place, rays, FAR, options.samples)
        (found.weights_RN.sum() + found.residual_R.sum() + found.scores_RC.square().sum()).backward()

    def all_terms() -> None:
        lesson = Lesson(frame, Occupancy(logits), {}, 0)
        torch.stack([term.to(device)(lesson) for term in terms]).sum().backward()

    def forward() -> None:
        with torch.no_grad():
            march(density, scores, place, rays, FAR, options.samples)

    parts = {
        "which voxels": lambda: reached(shape, rays, FAR, options.samples),
        "march, forward": forward,
        "march, both ways": both,
        "all four terms, both ways": all_terms,
    }
    print(f"{device_name(device)}, {options.threads} threads, torch {torch.__version__}")
    print(f"{options.rays} rays of {options.samples} samples read {len(density)} of {read.numel()} voxels")
    for name, part in parts.items():
        print(f"{name:28}{statistics.median(milliseconds(part, device, 1, options.repeats)):8.0f} ms")


if __name__ == "__main__":
    main()
