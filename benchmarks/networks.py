"""Parameters, GFLOP (2 x multiply-add, one keyframe) and latency of the networks in conf/student.

python benchmarks/networks.py [--device cuda] [--threads 2] [--train] [NAME ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

POINTS = 30_000


def load(name: str) -> tuple[nn.Module, DictConfig]:
    """The network of conf/student/NAME.yaml with random weights, and its inputs."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", f"+student={name}", "student.network.encoder.weights=none"])
    return instantiate(config.student.network), config.student.inputs


def keyframe(inputs: DictConfig, device: torch.device) -> dict[str, Any]:
    """A batch of one keyframe: noise seen by a ring of six cameras, 60 degrees apart, 70 degrees wide."""
    height, width = inputs.image_size
    intrinsics = torch.tensor([[0.71 * width, 0, width / 2], [0, 0.71 * width, height / 2], [0, 0, 1]])
    yaw = torch.arange(6) * torch.pi / 3
    zero, one = torch.zeros(6), torch.ones(6)
    right, down = torch.stack([yaw.sin(), -yaw.cos(), zero], 1), torch.stack([zero, zero, -one], 1)
    forward, centre = torch.stack([yaw.cos(), yaw.sin(), zero], 1), torch.stack([zero, zero, 1.5 * one], 1)
    cam2ego = torch.eye(4).repeat(6, 1, 1)
    cam2ego[:, :3] = torch.stack([right, down, forward, centre], 2)
    batch: dict[str, Any] = {
        "images": torch.randint(0, 256, (1, 6, 3, height, width), dtype=torch.uint8, device=device),
        "intrinsics": intrinsics.expand(1, 6, 3, 3).to(device),
        "cam2ego": cam2ego[None].to(device),
    }
    if inputs.lidar:
        spread = torch.tensor([25.0, 25.0, 2.0, 1.0])
        batch["points"] = [(torch.randn(POINTS, 4) * spread).to(device)]
    return batch


def gflop(network: nn.Module, batch: dict[str, Any]) -> float:
    """Floating-point operations of one forward pass, in units of 1e9."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(batch)
    return counter.get_total_flops() / 1e9


def milliseconds(step: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median wall time of `step`."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def steps(network: nn.Module, batch: dict[str, Any], train: bool) -> Callable[[], None]:
    """One forward pass, with the backward pass when training."""

    @torch.inference_mode()
    def forward() -> None:
        network.eval()(batch)

    def forward_backward() -> None:
        prediction = network.train()(batch)
        loss = prediction.voxel_logits_BXYZC.square().mean()
        if prediction.depth_logits_BNDHW is not None:
            loss = loss + prediction.depth_logits_BNDHW.square().mean()
        loss.backward()

    return forward_backward if train else forward


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["effnet_lite0", "resnet50", "demo", "fusion"])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("--train", action="store_true", help="time forward and backward instead of inference")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'network':16}{'M parameters':>14}{'GFLOP':>10}{'ms':>10}")
    for name in arguments.names:
        network, inputs = load(name)
        network = network.to(arguments.device)
        batch = keyframe(inputs, arguments.device)
        size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        operations = gflop(network, batch)
        latency = milliseconds(steps(network, batch, arguments.train), arguments.device, arguments.repeats)
        print(f"{name:16}{size:14.2f}{operations:10.1f}{latency:10.0f}")


if __name__ == "__main__":
    main()
