"""What can be scored: a checkpoint, the stores of a teacher, a folder of predictions.

Letters: B batch, X Y Z voxel axes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import Dataset

from distill.checkpoint import Checkpoint
from distill.classes import ClassSet
from distill.grids import VoxelGrid
from distill.nuscenes.frames import FrameDataset, to_device
from distill.nuscenes.index import Keyframe
from distill.nuscenes.labels import LabelSource
from distill.store import NOT_COVERED, StoreIdentity, TeacherStore
from distill.teaching import render
from student.evaluation.predictions import PredictionsFolder
from student.evaluation.tta import View, average_views
from student.stream import find_store


class Prediction(NamedTuple):
    """What a source says about one keyframe.

    Attributes:
        semantics_XYZ: class ids, uint8.
        log_probs_XYZC: log-probabilities, float32; None where the source states classes alone.
        covered_XYZ: bool, where log_probs_XYZC mean something; None: everywhere.
    """

    semantics_XYZ: Tensor
    log_probs_XYZC: Tensor | None = None
    covered_XYZ: Tensor | None = None


class Source(Protocol):
    """Predictions for keyframes.

    Attributes:
        name: heads its column.
        kind: "checkpoint", "teacher store" or "predictions".
        path: where it lies.
        facts: what the report says about it, JSON-ready.
        probabilities: whether it states more than classes.
    """

    name: str
    kind: str
    probabilities: bool
    path: str
    facts: dict[str, Any]

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[dict[str, Any]]:
        """Samples of labels (see `FrameDataset`) and of what `predict` needs, read by loader workers."""
        ...

    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        """One for each keyframe of a collated batch."""
        ...


class CheckpointSource:
    """A network; see `Source`.

    Args:
        name: heads its column.
        checkpoint: its weights and its configuration.
        views: the mirrored views whose probabilities are averaged; none: the keyframe as it is.
        device: where it runs.
    """

    kind = "checkpoint"
    probabilities = True

    def __init__(self, name: str, checkpoint: Checkpoint, views: Sequence[View], device: torch.device) -> None:
        self.name, self.path = name, str(checkpoint.path)
        self.network = checkpoint.network().to(device)
        self.views, self.device = views, device
        config = checkpoint.config
        self.grid: VoxelGrid = instantiate(config["grid"])
        self.inputs: dict[str, Any] = {**config["student"]["inputs"], "depth_stride": None}
        teachers = [StoreIdentity.from_dict(store) for store in checkpoint.facts["stores"]]
        self.facts = {
            "sha256": checkpoint.sha256,
            "weights": "EMA" if checkpoint.weights == "ema" else "raw",
            "student": config["student"]["name"],
            "epoch": checkpoint.facts["epoch"],
            "distillation": config["kd"]["name"],
            "teacher stores": [f"{store.teacher} {store.checkpoint_sha256[:12]}" for store in teachers],
            "mask in training": config["trainer"]["loss"]["mask"],
            "seed": config["seed"],
            "code in training": checkpoint.facts["code"],
            "test-time augmentation": f"mean of {len(views)} mirrored views" if views else "none",
            "precision": "float32",
        }

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[dict[str, Any]]:
        """See `Source.dataset`."""
        return FrameDataset(keyframes, labels=labels, augmentation=None, seed=0, **self.inputs)

    @torch.inference_mode()
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        """See `Source.predict`."""
        batch = to_device(batch, self.device)
        if self.views:
            log_probs_BXYZC = average_views(self.network, batch, self.views, self.grid)
        else:
            log_probs_BXYZC = self.network(batch).voxel_logits_BXYZC.float().log_softmax(-1)
        return [Prediction(log_probs.argmax(-1).to(torch.uint8), log_probs) for log_probs in log_probs_BXYZC]


class StoreSource:
    """A teacher's stores, or what their Gaussians say on another grid; see `Source`.

    A voxel that the teacher has not modelled counts as free, and has no probabilities.

    Args:
        name: heads its column.
        stores: a keyframe is taken from the first one that holds it.
        grid, classes: to score on.
        device: where Gaussians are rendered.

    Raises:
        InputError: a store holds neither voxels on this grid nor Gaussians, or other classes.
    """

    kind = "teacher store"
    probabilities = True

    def __init__(
        self, name: str, stores: Sequence[TeacherStore], grid: VoxelGrid, classes: ClassSet, device: torch.device
    ) -> None:
        self.name, self.path = name, ", ".join(str(store.path) for store in stores)
        self.stores, self.grid, self.classes, self.device = list(stores), grid, classes, device
        for store in stores:
            if self._stored(store) or store.identity.gaussians is None:
                store.check(grid, classes)
            else:
                store.check_gaussians(classes)
        self.facts = {
            "teacher": [store.identity.teacher for store in stores],
            "teacher's checkpoint, sha256": [store.identity.checkpoint_sha256 for store in stores],
            "voxels": ["as stored" if self._stored(store) else "rendered from Gaussians" for store in stores],
        }

    def _stored(self, store: TeacherStore) -> bool:
        return store.identity.voxels and store.grid == self.grid

    def missing(self, tokens: Sequence[str]) -> list[str]:
        """Those of the keyframes that no store holds."""
        return [token for token in tokens if find_store(self.stores, token) is None]

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[dict[str, Any]]:
        """See `Source.dataset`."""
        return _LabelsAnd(self._read, keyframes, labels)

    def _read(self, keyframe: Keyframe) -> dict[str, Any]:
        store = find_store(self.stores, keyframe.token)
        assert store is not None
        if not self._stored(store):
            lidar2grid = keyframe.lidar2ego if self.grid.frame == "ego" else np.eye(4)
            return {"gaussians": store.gaussians(keyframe.token), "lidar2grid": lidar2grid}
        return {
            "codes": store.codes(keyframe.token),
            "table": store.log_prob_table,
            "classes": store.semantics(keyframe.token),
        }

    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        """See `Source.predict`."""
        return [self._rendered(item) if "gaussians" in item else self._decoded(item) for item in batch["prediction"]]

    def _decoded(self, item: dict[str, Any]) -> Prediction:
        semantics_XYZ = torch.from_numpy(item["classes"])
        covered_XYZ = semantics_XYZ != NOT_COVERED
        log_probs_XYZC = torch.from_numpy(item["table"][item["codes"]]).log_softmax(-1)  # codes are rounded one by one
        return Prediction(semantics_XYZ.masked_fill(~covered_XYZ, self.classes.free), log_probs_XYZC, covered_XYZ)

    def _rendered(self, item: dict[str, Any]) -> Prediction:
        index_V = torch.arange(math.prod(self.grid.shape), device=self.device)
        lidar2grid_44 = torch.from_numpy(item["lidar2grid"]).to(self.device)
        log_probs_VC, covered_V = render(item["gaussians"].to(self.device), self.grid, lidar2grid_44, index_V)
        semantics_V = log_probs_VC.argmax(1).masked_fill(~covered_V, self.classes.free).to(torch.uint8)
        return Prediction(*(value.unflatten(0, self.grid.shape) for value in (semantics_V, log_probs_VC, covered_V)))


class PredictionsSource:
    """A folder of predictions; see `Source` and `student.evaluation.predictions`.

    Args:
        name: heads its column.
        folder: checked already.
        others: how many keyframes of the dataroot have a file in it and are not scored.
    """

    kind = "predictions"
    probabilities = False

    def __init__(self, name: str, folder: PredictionsFolder, others: int) -> None:
        self.name, self.path, self.folder = name, str(folder.path), folder
        self.facts = {"format": "class ids in `pred`", "files for other keyframes": others}

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[dict[str, Any]]:
        """See `Source.dataset`."""
        return _LabelsAnd(self._read, keyframes, labels)

    def _read(self, keyframe: Keyframe) -> dict[str, Any]:
        return {"classes": self.folder.read(keyframe.token)}

    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        """See `Source.predict`."""
        return [Prediction(torch.from_numpy(item["classes"])) for item in batch["prediction"]]


class _LabelsAnd(Dataset[dict[str, Any]]):
    """Labels as in `FrameDataset`, without images, and under "prediction" what `read` returns for the keyframe."""

    def __init__(
        self, read: Callable[[Keyframe], dict[str, Any]], keyframes: Sequence[Keyframe], labels: LabelSource
    ) -> None:
        self.read, self.keyframes, self.labels = read, keyframes, labels

    def __len__(self) -> int:
        return len(self.keyframes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        keyframe = self.keyframes[index]
        labels = self.labels.read(keyframe)
        return {
            "token": keyframe.token,
            **(labels or self.labels.unlabelled()),
            "labelled": labels is not None,
            "prediction": self.read(keyframe),
        }
