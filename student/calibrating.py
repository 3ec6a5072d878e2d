"""How often teachers are right where there are labels, measured before the first step for the terms that ask."""

from __future__ import annotations

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from distill import ranks
from distill.errors import InputError
from distill.loader import frame_loader
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.inventory import Inventory
from distill.teaching import Provider
from student.stream import TeacherStream
from student.survey import Plan

_KEYFRAMES, _BINS = 64, 50  # at most so many are looked at; bins of confidence


def calibrate(plan: Plan, train: Inventory, device: torch.device) -> list[str]:
    """Tell the terms that ask for it how often their teachers are right; returns what they make of it, printed.

    Raises:
        InputError: there is nothing to measure it on, or it would not last.
    """
    told: list[str] = []
    for teacher in plan.teachers:
        if plan.objective.asks_calibration(teacher.name):
            if teacher.changes:
                raise InputError(
                    f"kd.threshold.precision is measured before the first step, and what {teacher.name} "
                    f"({teacher.speakers()}) says changes with every step: give kd.threshold=0.5"
                )
            voxels_CB, right_CB = calibration(plan, train, teacher, device)
            told += plan.objective.calibrate(teacher.name, voxels_CB, right_CB)
    if told and ranks.rank() == 0:
        print(*told, sep="\n", flush=True)
    return told


@torch.no_grad()
def calibration(plan: Plan, train: Inventory, teacher: Provider, device: torch.device) -> tuple[Tensor, Tensor]:
    """How often a teacher is right in mask_camera of labelled training keyframes.

    All ranks must call it; each looks at its part, and all return the same.

    Args:
        plan: of the run.
        train: the training keyframes; of those with labels that the teacher holds a few, evenly spaced, are looked at.
        teacher: answers "voxels".
        device: where it does.

    Returns:
        voxels_CB, right_CB, int64, by predicted class and confidence; see `distill.metrics.Calibration`.

    Raises:
        InputError: it says nothing of a labelled voxel.
    """
    from distill.metrics import Calibration  # torchmetrics takes seconds to import

    config, tokens = plan.config, train.keyframes.tokens
    held = [token for token in tokens if token in train.labelled and teacher.holds(token)]
    chosen = {held[index] for index in np.linspace(0, len(held) - 1, min(_KEYFRAMES, len(held))).round().astype(int)}
    mine = train.keyframes.where([token in chosen for token in tokens])[ranks.rank() :: ranks.world_size()]
    labels = plan.labels("train")
    frames = FrameDataset(
        mine, labels=labels, augmentation=None, seed=config.seed, depth_stride=None, **config.student.inputs
    )
    stream = TeacherStream(frames, [teacher])
    loader = frame_loader(stream, min(1, config.trainer.workers), batch_size=1, generator=torch.Generator())
    counted = Calibration(instantiate(config.classes), _BINS).to(device)
    for frame in loader:
        frame = frame.to(device)
        taught = teacher.taught(frame)
        seen_BXYZ = frame.mask_camera & taught.taught_B[:, None, None, None]
        index_V = seen_BXYZ.flatten().nonzero().squeeze(1)
        index_V = index_V[taught.covered(index_V)]
        labels_V = frame.semantics.flatten()[index_V]
        counted.update(taught.voxels(index_V).softmax(-1), labels_V, torch.ones_like(labels_V, dtype=torch.bool))
    counted.sync()  # over ranks
    if not counted.voxels_CB.any():
        raise InputError(
            "kd.threshold.precision needs labelled keyframes: there is none in training of whose visible voxels "
            f"{teacher.name} says something: give kd.threshold=0.5"
        )
    return counted.voxels_CB, counted.right_CB
