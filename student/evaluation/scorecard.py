"""All metrics of one source, and the check that they work before anything is scored.

Letters: X Y Z voxel axes, C classes, D thresholds of RayIoU, K keyframes of a scene, T ray origins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from distill import rigid
from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.metrics import (
    BandScore,
    Calibration,
    Flicker,
    FScore,
    OccupancyScore,
    RayIoU,
    conventions,
    distance_bands,
    height_bands,
    ray_origins,
)
from distill.metrics.bootstrap import Counts
from distill.metrics.rays import THRESHOLDS
from distill.nuscenes.index import KeyframeIndex
from distill.nuscenes.keyframe import Keyframe
from student.evaluation.sources import Prediction

_TOLERANCE = 1e-4  # percent, of the self-check: the F-score's epsilon keeps it from 100 exactly


class ScenePoses:
    """Where the LiDAR is in all keyframes of a keyframe's scene, which is where RayIoU's rays begin.

    Without a LiDAR they begin amidst the cameras.

    Args:
        index: all keyframes of the dataroot, not only those that are scored.
        grid: of the labels.
    """

    def __init__(self, index: KeyframeIndex, grid: VoxelGrid) -> None:
        self.index, self.grid = index, grid
        self._tokens: dict[str, list[str]] = {}
        for scene, token in zip(index.scenes, index.tokens, strict=True):
            self._tokens.setdefault(scene, []).append(token)
        self._scene: tuple[str, np.ndarray, np.ndarray] | None = None  # the last one: keyframes come scene by scene

    def ray_origins(self, keyframe: Keyframe) -> np.ndarray:
        """Where its rays begin, metres in the frame of the grid, float64 (T, 3); `distill.metrics.ray_origins`."""
        tokens = self._tokens[keyframe.scene]
        if self._scene is None or self._scene[0] != keyframe.scene:
            keyframes = list(self.index.select(tokens))
            lidar2ego_K44 = np.stack([viewpoint(other) for other in keyframes])
            self._scene = (keyframe.scene, lidar2ego_K44, np.stack([other.ego2global for other in keyframes]))
        return ray_origins(*self._scene[1:], tokens.index(keyframe.token), self.grid)

    def grid2global(self, keyframe: Keyframe) -> np.ndarray:
        """The frame of the grid to the map, float64 (4, 4)."""
        return keyframe.ego2global @ rigid.inverse(self.grid.from_ego(keyframe.lidar2ego))


def viewpoint(keyframe: Keyframe) -> np.ndarray:
    """The pose of the LiDAR in the ego frame, or of one that would be amidst the cameras, float64 (4, 4)."""
    if keyframe.lidar2ego is not None:
        return keyframe.lidar2ego
    pose = np.eye(4)
    there = [camera.present for camera in keyframe.cameras]
    pose[:3, 3] = keyframe.cam2ego()[there, :3, 3].mean(0)
    return pose


class Scorecard:
    """Accumulates every metric over keyframes; with each of them its memory grows by 3 kB.

    Args:
        grid, classes: of labels and predictions.
        settings: `metrics` of conf/eval.yaml.
        poses: of the dataroot.
        device: where it counts.
        probabilities: whether predictions carry log-probabilities.

    Attributes:
        keyframe_miou: sample token -> mIoU of that keyframe alone, by the class set's convention, over the classes that
            occur.
        keyframe_counts: sample token -> what was counted in that keyframe alone, int32 on the CPU: confusion (C, C),
            rays (C, C) and hits (D, C) as `OccupancyScore` and `RayIoU` have them.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        classes: ClassSet,
        settings: DictConfig,
        poses: ScenePoses,
        device: torch.device,
        probabilities: bool,
    ) -> None:
        self.classes, self.poses, self.device = classes, poses, device
        self.convention = conventions(classes)[0]
        self.occupancy = OccupancyScore(classes).to(device)
        self.distance = BandScore(self.convention, distance_bands(grid, settings.distance_bands)).to(device)
        self.height = BandScore(self.convention, height_bands(grid, settings.height_bands)).to(device)
        self.rays = RayIoU(grid, classes).to(device)
        self.f_score = FScore(grid, classes, settings.f_score_distance).to(device)
        self.flicker = Flicker(grid, classes).to(device)
        self.calibration = Calibration(classes, settings.calibration_bins).to(device) if probabilities else None
        self.keyframe_miou: dict[str, float] = {}
        self.keyframe_counts: dict[str, Counts] = {}

    def update(self, prediction: Prediction, semantics_XYZ: Tensor, mask_XYZ: Tensor, keyframe: Keyframe) -> None:
        """Count one labelled keyframe."""
        volumes = {
            "prediction_XYZ": prediction.semantics_XYZ.to(self.device),
            "semantics_XYZ": semantics_XYZ.to(self.device),
            "mask_XYZ": mask_XYZ.to(self.device),
        }
        before = [counts.clone() for counts in self._counts()]
        for metric in (self.occupancy, self.distance, self.height, self.f_score):
            metric.update(**volumes)
        self.rays.update(volumes["prediction_XYZ"], volumes["semantics_XYZ"], self.poses.ray_origins(keyframe))
        counts = [(after - earlier).cpu() for after, earlier in zip(self._counts(), before, strict=True)]
        self.keyframe_miou[keyframe.token] = float(self.convention.score(counts[0]).occurring_miou)
        self.keyframe_counts[keyframe.token] = [each.int() for each in counts]
        self.flicker.update(
            **volumes,
            token=keyframe.token,
            previous=keyframe.previous,
            grid2global_44=self.poses.grid2global(keyframe),
        )
        if self.calibration is not None:
            assert prediction.log_probs_XYZC is not None
            mask_XYZ = volumes["mask_XYZ"]
            if prediction.covered_XYZ is not None:
                mask_XYZ = mask_XYZ & prediction.covered_XYZ.to(self.device)
            self.calibration.update(prediction.log_probs_XYZC.exp(), semantics_XYZ, mask_XYZ)

    def _counts(self) -> Counts:
        return self.occupancy.confusion_CC, self.rays.rays_CC, self.rays.hits_DC

    def compute(self) -> dict[str, Any]:
        """Everything about the keyframes of all processes, which must all ask; JSON-ready, in percent.

        Returns:
            `metrics`: name -> number; `per_class`: name -> class -> number; `confusion`: voxels [label][prediction];
            `bands`: "distance" and "height"; `reliability`, where probabilities were given. NaN is None.
        """
        occupancy = self.occupancy.compute()
        counts_CC = occupancy.pop("confusion")
        calibration = {} if self.calibration is None else self.calibration.compute()
        values = occupancy | self.rays.compute() | self.f_score.compute() | calibration | self.flicker.compute()
        per_class = {
            name.removesuffix(" per class"): self._by_class(value)
            for name, value in values.items()
            if name.endswith(" per class") and name != "RayIoU per class"
        }
        for threshold, iou_C in zip(THRESHOLDS, values["RayIoU per class"], strict=True):
            per_class[f"RayIoU@{threshold}"] = self._by_class(iou_C)
        per_class["labelled voxels"] = self._by_class(counts_CC.sum(1))
        result = {
            "metrics": {name: json_number(value) for name, value in values.items() if value.ndim == 0},
            "per_class": per_class,
            "confusion": counts_CC.tolist(),
            "bands": {band.bands.name: _bands(band) for band in (self.distance, self.height)},
        }
        if calibration:
            result["reliability"] = {"all": _curve(values, ""), "occupied": _curve(values, " occupied")}
        return result

    def _by_class(self, value_C: Tensor) -> dict[str, Any]:
        return dict(zip(self.classes.names, map(json_number, value_C), strict=True))


def self_check(card: Scorecard, empty: Scorecard, labels: dict[str, Tensor], keyframe: Keyframe) -> str:
    """Score ground truth against itself, and an all-free prediction: every metric must say 100, and 0.

    Args:
        card, empty: two that have not counted anything.
        labels: `semantics` and `mask_camera` of a labelled keyframe.
        keyframe: the same.

    Returns:
        What was found, in words.

    Raises:
        InputError: a metric says something else.
    """
    semantics_XYZ, mask_XYZ = labels["semantics"], labels["mask_camera"]
    # what is not scored is free: a prediction has no word for it
    known_XYZ = (semantics_XYZ < len(card.classes)) & (semantics_XYZ != card.classes.ignored)
    truth_XYZ = semantics_XYZ.where(known_XYZ, card.classes.free)
    for target, prediction_XYZ, expected in (
        (card, truth_XYZ, 100.0),
        (empty, torch.full_like(truth_XYZ, card.classes.free), 0.0),
    ):
        target.update(Prediction(prediction_XYZ), semantics_XYZ, mask_XYZ, keyframe)
        found = target.compute()["metrics"]
        names = [f"{target.convention.name} occurring mIoU", f"{target.convention.name} geometric IoU"]
        for name in (*names, "RayIoU", "RayIoU@1", "F-score"):
            if found[name] is None or abs(found[name] - expected) > _TOLERANCE:
                what = "ground truth scored against itself" if expected else "an all-free prediction"
                raise InputError(
                    f"self-check: {what} has {name} {found[name]} instead of {expected:.0f} (keyframe "
                    f"{keyframe.token}): these metrics cannot be trusted on {target.device}; try device=cpu"
                )
    return f"ground truth scored against itself gives 100, an all-free prediction 0 (keyframe {keyframe.token})"


def _bands(score: BandScore) -> dict[str, Any]:
    name, values = score.bands.name, score.compute()
    rows = {key: values[f"{name} {key}"] for key in ("mIoU", "geometric IoU", "voxels")}
    return {"labels": list(score.bands.labels)} | {key: [*map(json_number, row)] for key, row in rows.items()}


def _curve(values: dict[str, Tensor], suffix: str) -> dict[str, list[Any]]:
    return {
        name: [*map(json_number, values[f"reliability {name}{suffix}"])]
        for name in ("accuracy", "confidence", "voxels")
    }


def json_number(value: Tensor) -> float | int | None:
    """A tensor of one number for a JSON file: NaN is None."""
    number = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number
