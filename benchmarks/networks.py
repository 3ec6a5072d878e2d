"""What the networks in conf/student cost for one keyframe: parameters, GFLOP (2 x multiply-add), latency, peak memory.

python benchmarks/networks.py [--device cuda] [--threads 2] [--train] [NAME ...]

One that looks back remembers what it saw, and pays for the new keyframe alone; in training it looks at all of them.
Networks take turns, run by run, so that a machine that is busy for a while is so for all of them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import cycle

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from distill.frame import Calibration, Frame
from distill.networks.network import streamed
from distill.nuscenes.layout import CAMERAS
from student.evaluation.cost import device_name, milliseconds, network_cost, precision_name

POINTS = 30_000
WARMUP = 2
NAMES = (
    *("effnet_lite0", "effnet_lite0_small", "effnet_lite0_2f", "resnet50", "demo", "fusion"),
    *("flashocc_m0", "flashocc_m1", "flashocc_m2"),
)


def load(name: str) -> tuple[nn.Module, DictConfig]:
    """The network of conf/student/NAME.yaml with random weights, and its inputs."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", f"+student={name}"])
    return instantiate(config.student.network), config.student.inputs


def keyframe(inputs: DictConfig, device: torch.device) -> Frame:
    """A batch of one keyframe, and of its past: five metres from one to the next."""
    past = []
    for step in range(1, inputs.history + 1):
        ego2present = torch.eye(4)[None]
        ego2present[:, 0, 3] = -5.0 * step
        past.append(replace(noise(inputs), ego2present=ego2present))
    return replace(noise(inputs), past=tuple(past) or None).to(device)


def noise(inputs: DictConfig) -> Frame:
    """Seen by a ring of six cameras, 60 degrees apart, 70 degrees wide."""
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


class Subject:
    """A network of the table, built with random weights.

    Args:
        name: of its configuration.
        device: where it runs.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        network, inputs = load(name)
        self.name, self.network, self.device = name, network.to(device).eval(), device
        self.batch = keyframe(inputs, device)
        # as in `network_cost`: its images are new each time, its past is not
        self.turns = cycle([self.batch, replace(self.batch, images=255 - self.batch.images)])
        self.cost = network_cost(self.network, self.batch, device, torch.float32, WARMUP, runs=1)
        self.answer = streamed(self.network, calls=1)
        self.times: dict[str, list[float]] = {"keyframe": [], "training": []}

    def run(self, warmup: int, runs: int, train: bool) -> None:
        """Time the next keyframes and, if so wished, steps of training."""
        self.network.eval()
        self.times["keyframe"] += milliseconds(self._keyframe, self.device, warmup, runs)
        if train:
            self.network.train()
            self.times["training"] += milliseconds(self._training_step, self.device, warmup, runs)

    @torch.inference_mode()
    def _keyframe(self) -> None:
        self.answer(next(self.turns))

    def _training_step(self) -> None:
        """One forward and backward pass."""
        prediction = self.network(self.batch)
        loss = prediction.voxel_logits_BXYZC.square().mean()
        if prediction.depth is not None:
            loss = loss + prediction.depth.logits_BNDHW.square().mean()
        loss.backward()

    def row(self) -> str:
        """Its line of the table."""
        median, p95 = np.percentile(self.times["keyframe"], (50, 95))
        numbers = f"{self.cost['parameters'] / 1e6:14.2f}{self.cost['gflop']:10.1f}{median:10.0f}{p95:10.0f}"
        training = f"{np.median(self.times['training']):13.0f}" if self.times["training"] else ""
        return f"{self.name:20}{numbers}{self.cost['peak_memory_mb']:>10.0f}{training}"


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
    print(f"{'network':20}{'M parameters':>14}{'GFLOP':>10}{'ms':>10}{'p95 ms':>10}{'MB':>10}{training}")
    subjects = [Subject(name, options.device) for name in options.names]
    for run in range(options.repeats):
        for subject in subjects:
            subject.run(WARMUP * (run == 0), 1, options.train)
    print(*(subject.row() for subject in subjects), sep="\n")


if __name__ == "__main__":
    main()
