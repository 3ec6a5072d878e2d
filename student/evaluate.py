"""occ-eval: score a checkpoint on labelled keyframes, beside its teacher, with tables and pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader
from tqdm import tqdm

from distill import ranks
from distill.checkpoint import Checkpoint, load_checkpoint
from distill.classes import ClassSet
from distill.command import command
from distill.grids import VoxelGrid
from distill.metrics import OccupancyScore
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset, collate, to_device
from distill.nuscenes.index import Keyframe, Keyframes
from distill.store import NOT_COVERED, TeacherStore
from distill.teaching import render
from student.report import Report
from student.stream import find_store


@command("eval")
def main(config: DictConfig) -> None:
    """Score the configured checkpoint; see conf/eval.yaml."""
    device = ranks.device(config.device)
    with ranks.process_group(device):
        checkpoint = load_checkpoint(config.checkpoint, config.weights)
        settings = settings_of(checkpoint, config)
        keyframes = open_dataroot(settings.data).keyframes(config.split)[: config.max_samples]
        ranks.check_enough(len(keyframes), "keyframes")
        classes = instantiate(settings.classes)
        stores = existing_stores(settings, classes)
        output = Path(config.output or checkpoint.path.parent / f"eval-{config.split}")
        report = Report(output, classes, checkpoint, settings, config.split)
        evaluate(config, checkpoint, settings, keyframes, stores, report, device)


def evaluate(
    config: DictConfig,
    checkpoint: Checkpoint,
    settings: DictConfig,
    keyframes: Keyframes,
    stores: list[TeacherStore],
    report: Report,
    device: torch.device,
) -> None:
    """Run the network over this rank's keyframes, count, draw, and write the report from the first rank."""
    network = checkpoint.network().to(device)
    mine = keyframes[ranks.rank() :: ranks.world_size()]
    inputs = {**settings.student.inputs, "depth_stride": None}
    grid = instantiate(settings.grid)
    labels = open_labels(settings.data, grid)
    frames = FrameDataset(mine, labels=labels, augmentation=None, seed=0, **inputs)
    loader = DataLoader(frames, batch_size=config.batch_size, num_workers=config.workers, collate_fn=collate)
    pictured = spread(mine, config.panels)
    scores = {"student": OccupancyScore(report.classes), "teacher": OccupancyScore(report.classes)}
    progress = tqdm(total=len(mine), desc="evaluate", unit="keyframe", disable=ranks.rank() != 0)
    with progress:
        for batch in loader:
            for sample in predictions(network, batch, stores, grid, report.classes, device):
                if sample["labelled"]:
                    for who in scores.keys() & sample.keys():
                        scores[who].update(sample[who], sample["semantics"], sample["mask_camera"])
                if sample["token"] in pictured:
                    report.add_panel(pictured[sample["token"]], sample)
                progress.update()
    for score in scores.values():
        score.all_reduce()
    if ranks.rank() == 0:
        report.finish(scores, len(keyframes))


@torch.inference_mode()
def predictions(
    network: torch.nn.Module,
    batch: dict[str, Any],
    stores: list[TeacherStore],
    grid: VoxelGrid,
    classes: ClassSet,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Per sample of the batch: token, labels, and the classes by student and, where a store has it, teacher."""
    student_BXYZ = network(to_device(batch, device)).voxel_logits_BXYZC.argmax(-1).to(torch.uint8).cpu().numpy()
    samples = []
    for index, token in enumerate(batch["token"]):
        sample = {
            "token": token,
            "student": student_BXYZ[index],
            "labelled": bool(batch["labelled"][index]),
            "semantics": batch["semantics"][index].numpy(),
            "mask_camera": batch["mask_camera"][index].numpy(),
        }
        store = find_store(stores, token)
        if store is not None:
            lidar2ego_44 = batch["lidar2ego"][index].to(device)
            sample["teacher"] = teacher_semantics(store, token, grid, lidar2ego_44, classes.free)
        samples.append(sample)
    return samples


def teacher_semantics(
    store: TeacherStore, token: str, grid: VoxelGrid, lidar2ego_44: torch.Tensor, free: int
) -> np.ndarray:
    """The teacher's classes on `grid`, stored or rendered from its Gaussians; free where it has modelled nothing."""
    if store.grid == grid:
        semantics_XYZ = store.semantics(token)
        return np.where(semantics_XYZ == NOT_COVERED, np.uint8(free), semantics_XYZ)
    device = lidar2ego_44.device
    index_V = torch.arange(math.prod(grid.shape), device=device)
    log_probs_VC, covered_V = render(store.gaussians(token).to(device), grid, lidar2ego_44, index_V)
    semantics_V = log_probs_VC.argmax(1).masked_fill(~covered_V, free).to(torch.uint8)
    return semantics_V.view(grid.shape).cpu().numpy()


def settings_of(checkpoint: Checkpoint, config: DictConfig) -> DictConfig:
    """The checkpoint's own configuration with the data and store values given to occ-eval in place."""
    given = {
        group: {key: config[group][key] for key in config[group] if config[group][key] is not None}
        for group in ("data", "store")
    }
    merged = OmegaConf.merge(OmegaConf.create(checkpoint.config), given)
    assert isinstance(merged, DictConfig)
    return merged


def existing_stores(settings: DictConfig, classes: ClassSet) -> list[TeacherStore]:
    """The teacher stores to compare with; a path that does not exist is said and left out."""
    stores = []
    for path in settings.store.paths:
        if not Path(path).exists():
            print(f"no teacher store at {path}: the student is scored alone")
            continue
        store = TeacherStore(Path(path))
        if settings.store.get("render"):
            store.check_gaussians(classes)
        else:
            store.check(instantiate(settings.grid), classes)
        stores.append(store)
    return stores


def spread(keyframes: Keyframes, count: int) -> dict[str, Keyframe]:
    """`count` keyframes by token, evenly spaced."""
    step = max(1, len(keyframes) // max(1, count))
    return {frame.token: frame for frame in keyframes[step // 2 :: step][:count]}
