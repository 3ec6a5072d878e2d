"""What the networks in conf/student cost for one keyframe: parameters, GFLOP (2 x multiply-add), latency, peak memory.

python benchmarks/networks.py [--device cuda] [--threads 2] [--train] [NAME ...]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from distill.frame import Calibration, Frame
from distill.nuscenes.layout import CAMERAS
from student.evaluation.cost import device_name, milliseconds, network_cost, precision_name

POINTS = 30_000
WARMUP = 2
NAMES = ("effnet_lite0", "resnet50", "demo", "fusion", "flashocc_m0", "flashocc_m1", "flashocc_m2")


def load(name: str) -> tuple[nn.Module, DictConfig]:
    """The network of conf/student/NAME.yaml with random weights, and its inputs."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", f"+student={name}"])
    return instantiate(config.student.network), config.student.inputs


def keyframe(inputs: DictConfig, device: torch.device) -> Frame:
    """A batch of one keyframe, and of as many in its past as are asked for, from where the car stands now."""
    present, *past = (seen(inputs) for _ in range(1 + inputs.history))
    still = torch.eye(4).expand(1, 4, 4)
    return replace(present, past=tuple(replace(each, ego2present=still) for each in past)).to(device)


def seen(inputs: DictConfig) -> Frame:
    """Noise seen by a ring of six cameras, 60 degrees apart, 70 degrees wide."""
    height, width = inputs.image_size
    intrinsics = torch.tensor([[0.71 * width, 0, width / 2], [0, 0.71 * width, height / 2], [0, 0, 1]])
    yaw = torch.arange(6) * torch.pi / 3
    zero, one = torch.zeros(6), torch.ones(6)
    right, down = torch.stack([yaw.sin(), -yaw.cos(), zero], 1), torch.stack([zero, zero, -one], 1)
    forward, centre = torch.stack([yaw.cos(), yaw.sin(), zero], 1), torch.stack([zero, zero, 1.5 * one], 1)
    cam2ego = torch.eye(4).repeat(6, 1, 1)
    cam2ego[:, :3] = torch.stack([right, down, forward, centre], 2)
    spread = torch.tensor([25.0, 25.0, 2.0, 1.0])
    calibration = Calibration(
        intrinsics=intrinsics.expand(1, 6, 3, 3),
        source2image=torch.eye(3).expand(1, 6, 3, 3),
        cam2ego=cam2ego[None],
        ego2global=torch.eye(4).expand(1, 6, 4, 4),
        world=torch.eye(4)[None],
    )
    return Frame(
        channels=[CAMERAS],
        images=torch.randint(0, 256, (1, 6, 3, height, width), dtype=torch.uint8),
        intrinsics=intrinsics.expand(1, 6, 3, 3),
        cam2ego=cam2ego[None],
        calibration=calibration if inputs.get("calibration") else None,
        points=[torch.randn(POINTS, 4) * spread] if inputs.lidar else None,
    )


def training_step(network: nn.Module, batch: Frame) -> Callable[[], None]:
    """One forward and backward pass."""
    network.train()

    def step() -> None:
        prediction = network(batch)
        loss = prediction.voxel_logits_BXYZC.square().mean()
        if prediction.depth is not None:
            loss = loss + prediction.depth.logits_BNDHW.square().mean()
        loss.backward()

    return step


def row(name: str, options: argparse.Namespace) -> str:
    """What the network costs, as one line of the table."""
    network, inputs = load(name)
    network = network.to(options.device).eval()
    batch = keyframe(inputs, options.device)
    cost = network_cost(network, batch, options.device, torch.float32, WARMUP, options.repeats)
    latency, memory = cost["latency_ms"], cost["peak_memory_mb"]
    numbers = f"{cost['parameters'] / 1e6:14.2f}{cost['gflop']:10.1f}{latency['median']:10.0f}{latency['p95']:10.0f}"
    line = f"{name:16}{numbers}{memory:>10.0f}"
    if options.train:
        times = milliseconds(training_step(network, batch), options.device, WARMUP, options.repeats)
        line += f"{statistics.median(times):13.0f}"
    return line


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("--train", action="store_true", help="time forward and backward passes too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hardware = f"{device_name(options.device)}, {precision_name(torch.float32, options.device)}"
    print(f"{hardware}, torch {torch.__version__}, {options.repeats} runs")
    training = f"{'training ms':>13}" if options.train else ""
    print(f"{'network':16}{'M parameters':>14}{'GFLOP':>10}{'ms':>10}{'p95 ms':>10}{'MB':>10}{training}")
    for name in options.names:
        print(row(name, options), flush=True)


if __name__ == "__main__":
    main()
