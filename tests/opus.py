"""Upstream's goldens of OPUS: weights and inputs that a seed determines, and a network of either kind that has them."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from distill.classes import OCC3D_CLASSES
from distill.frame import Frame
from distill.grids import OCC3D
from distill.networks.opus import OPUS
from distill.networks.opus.weights import OFFICIAL
from distill.point_sets import VoxelRule

SMALL = {"queries": 20, "samples": 2, "refined": [1, 2, 4], "history": 1, "backbone_weights": "none"}
CAMERAS = tuple(f"CAM_{place}" for place in ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT"))


def filler(folder: Path) -> ModuleType:
    """The module that makes weights and inputs of a seed."""
    spec = importlib.util.spec_from_file_location("detfill", folder / "detfill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def upstream_state(folder: Path, size: str, frames: int, seed: int) -> dict[str, torch.Tensor]:
    """Weights under upstream's names, of a number of frames."""
    listed = json.loads((folder / "state_dict_keys.json").read_text())
    shapes = {**listed["opus-t_r50_704x256_8f"], **listed[f"opus-{size}_r50_704x256_8f"].get("differs", {})}
    constants = {
        "pc_range": torch.tensor([-40, -40, -1, 40, 40, 5.4]),
        "scene_size": torch.tensor([80, 80, 6.4]),
        "voxel_size": torch.full((3,), 0.4),
        "voxel_num": torch.tensor([200, 200, 16]),
        "num_batches_tracked": torch.tensor(0),
    }
    state = {}
    for name, (shape, _) in shapes.items():
        if "parameter_generator" in name:  # columns of the matrix over samples: frames * samples of each
            shape = [4 * (4096 + (shape[0] // 4 - 4096) // 8 * frames), *shape[1:]]
        found = filler(folder).fill(name, tuple(shape), seed)
        state[name] = constants[name.rpartition(".")[2]] if found is None else torch.from_numpy(found)
    return state


def network(size: str, history: int) -> OPUS:
    """A network with random weights, by its configuration."""
    given = [f"student=opus_{size}", f"student.inputs.history={history}"]
    given += ["student.network.backbone_weights=none"]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", given)
    built: OPUS = instantiate(config.student.network)
    return built.eval()


def golden_network(folder: Path, size: str, frames: int, seed: int, tmp: Path) -> OPUS:
    """A network that was loaded from a file of upstream's."""
    file = tmp / f"{size}{frames}{seed}.pth"
    torch.save({"meta": {"epoch": 100}, "state_dict": upstream_state(folder, size, frames, seed)}, file)
    built = network(size, frames - 1)
    OFFICIAL.load(built, file)
    return built


def golden_frame(folder: Path, frames: int, height: int, width: int, seed: int) -> Frame:
    """A batch of one keyframe and its past, as our data pipeline would give it."""
    detfill = filler(folder)
    rig = detfill.rig(frames, height, width, seed)
    images = detfill.images(frames * 6, height, width, seed)[:, ::-1].reshape(  # theirs are B, G, R
        frames, 6, 3, height, width
    )
    # keyframes whose ego frames are those of their front cameras
    ego2global = [rig["ego2global"], *rig["cam_ego2global"][1:, 0]]
    intrinsics = rig["ida"][:3, :3].astype(np.float64) @ rig["K"]

    def seen(number: int, **more: Any) -> Frame:
        cam2ego = np.linalg.inv(ego2global[number]) @ rig["cam_ego2global"][number] @ rig["cam2ego"]
        return Frame(
            token=[f"{number}"],
            channels=[CAMERAS],
            images=torch.from_numpy(images[number].copy()).unsqueeze(0),
            intrinsics=torch.from_numpy(intrinsics).float().unsqueeze(0),
            cam2ego=torch.from_numpy(cam2ego).float().unsqueeze(0),
            lidar2ego=torch.from_numpy(rig["lidar2ego"]).float().unsqueeze(0),
            **more,
        )

    past = []
    for number in range(1, frames):
        ego2present = torch.from_numpy(np.linalg.inv(ego2global[0]) @ ego2global[number]).float()
        past.append(seen(number, ego2present=ego2present.unsqueeze(0)))
    return seen(0, past=tuple(past))


def rig(height: int, width: int) -> dict[str, torch.Tensor]:
    """Calibration of six cameras in a circle, 1.5 m above the ground; without a leading axis."""
    cam2ego = torch.eye(4).repeat(6, 1, 1)
    for camera, degrees in enumerate((0, -55, 55, 180, 110, -110)):
        yaw = np.radians(degrees)
        cam2ego[camera, :3, 0] = torch.tensor([np.sin(yaw), -np.cos(yaw), 0.0])
        cam2ego[camera, :3, 1] = torch.tensor([0.0, 0, -1])
        cam2ego[camera, :3, 2] = torch.tensor([np.cos(yaw), np.sin(yaw), 0.0])
        cam2ego[camera, 2, 3] = 1.5
    intrinsics = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]).repeat(6, 1, 1)
    return {"intrinsics": intrinsics, "cam2ego": cam2ego, "lidar2ego": torch.eye(4)}


def small(**given: Any) -> OPUS:
    """A network of few queries with random weights, the same each time."""
    torch.manual_seed(0)
    rule = VoxelRule(3.0, 0.5, 10, 1.0)
    made = {**SMALL, "rule": rule, "grid": OCC3D, "classes": OCC3D_CLASSES, **given}
    return OPUS(**made)


def batch(count: int, history: int = 1, first: int = 0) -> Frame:
    """Keyframes `first` ... of a drive, whose images are noise; each is a metre ahead of the one before."""

    def seen(back: int) -> Frame:
        numbers = [first + index - back for index in range(count)]
        images = [np.random.default_rng(1000 + number).integers(0, 256, (6, 3, 64, 96), np.uint8) for number in numbers]
        behind = torch.eye(4)
        behind[0, 3] = -back
        return Frame(
            token=[f"{number}" for number in numbers],
            channels=[CAMERAS] * count,
            images=torch.from_numpy(np.stack(images)),
            ego2present=behind.expand(count, 4, 4),
            **{name: value.expand(count, *value.shape) for name, value in rig(64, 96).items()},
        )

    return replace(seen(0), past=tuple(seen(back + 1) for back in range(history)), ego2present=None)


def saved(file: Path, network: OPUS) -> Path:
    """Its weights as upstream saves them, wrapped and with the prefix of a distributed run."""
    state = {}
    for name, value in network.state_dict().items():
        for ours, theirs in (
            ("decoder.layers", "pts_bbox_head.transformer.decoder.decoder_layers"),
            ("decoder.init_points", "pts_bbox_head.init_points.weight"),
            ("attention.", "attention.attn."),
            ("ffn.0", "ffn.layers.0.0"),
            ("ffn.3", "ffn.layers.1"),
        ):
            name = name.replace(ours, theirs)
        name = re.sub(r"((?:lateral|fpn)_convs\.\d)", r"\1.conv", name)
        name = f"pts_bbox_head.{name}" if name in ("pc_range", "scene_size", "voxel_size", "voxel_num") else name
        state[f"module.{name}"] = value
    torch.save({"meta": {"mmcv_version": "1.6.0"}, "state_dict": state, "optimizer": {}}, file)
    return file
