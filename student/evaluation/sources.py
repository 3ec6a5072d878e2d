"""What can be scored: a checkpoint, an ONNX file of one, the stores of a teacher, a folder of predictions.

Letters: B batch, X Y Z voxel axes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.data import Dataset

from distill.checkpoint import Checkpoint
from distill.classes import ClassSet
from distill.errors import InputError
from distill.frame import GRID, Array, Frame, declared
from distill.grids import VoxelGrid
from distill.networks.network import streamed
from distill.networks.published import Published
from distill.nuscenes.frames import FrameDataset, with_labels
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.labels import LabelSource
from distill.store import NOT_COVERED, StoreIdentity, TeacherStore
from distill.teaching.stored import Stored
from student.evaluation.cost import cpu_name, milliseconds, network_cost
from student.evaluation.deployed import Deployed
from student.evaluation.predictions import PredictionsFolder
from student.evaluation.tta import View, average_views
from student.export.runtime import OnnxFile
from student.identity import stores_of


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
        kind: "checkpoint", "published weights", "ONNX file", "teacher store" or "predictions".
        path: where it lies.
        facts: what the report says about it, JSON-ready.
        probabilities: whether it states more than classes.
    """

    name: str
    kind: str
    probabilities: bool
    path: str
    facts: dict[str, Any]

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[Frame]:
        """Frames with labels and with what `predict` needs, read by loader workers."""
        ...

    def predict(self, frame: Any) -> list[Prediction]:
        """One for each keyframe of a batch."""
        ...


class NetworkSource:
    """A network; see `Source`.

    Args:
        name: heads its column.
        origin: its weights and its configuration.
        network: it, in evaluation mode.
        views: the mirrored views whose probabilities are averaged; none: the keyframe as it is.
        device: where it runs.
    """

    kind = "published weights"
    probabilities = True

    def __init__(
        self,
        name: str,
        origin: Checkpoint | Published | OnnxFile,
        network: nn.Module,
        views: Sequence[View],
        device: torch.device,
    ) -> None:
        self.name, self.path = name, str(origin.path)
        self.network = network.to(device)
        self.views, self.device = views, device
        # keyframes come in the order of time, each once for every view
        self.answer = streamed(self.network, calls=max(1, len(views)))
        self.grid: VoxelGrid = instantiate(origin.config["grid"])
        self.inputs: dict[str, Any] = origin.config["student"]["inputs"]
        self.facts: dict[str, Any] = {
            "sha256": origin.sha256,
            "student": origin.config["student"]["name"],
            "test-time augmentation": f"mean of {len(views)} mirrored views" if views else "none",
            "precision": "float32",
        }
        if isinstance(origin, Published):
            self.facts["configured to"] = list(origin.wanted)

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[Frame]:
        """Labels, and what the network is given."""
        return FrameDataset(keyframes, labels=labels, augmentation=None, seed=0, depth_stride=None, **self.inputs)

    def cost(self, batch: Frame, warmup: int, runs: int) -> dict[str, Any]:
        """What one keyframe costs, see `student.evaluation.cost.network_cost`."""
        return network_cost(self.network, batch, self.device, torch.float32, warmup, runs)

    @torch.inference_mode()
    def predict(self, frame: Frame) -> list[Prediction]:
        """The network's answer, by all views."""
        frame = frame.to(self.device)
        if self.views:
            log_probs_BXYZC = average_views(self.answer, frame, self.views, self.grid)
        else:
            log_probs_BXYZC = self.answer(frame).voxel_logits_BXYZC.float().log_softmax(-1)
        return [Prediction(log_probs.argmax(-1).to(torch.uint8), log_probs) for log_probs in log_probs_BXYZC]


class CheckpointSource(NetworkSource):
    """A network that was trained here; see `NetworkSource`."""

    kind = "checkpoint"

    def __init__(self, name: str, checkpoint: Checkpoint, views: Sequence[View], device: torch.device) -> None:
        super().__init__(name, checkpoint, checkpoint.network(), views, device)
        self.checkpoint, config = checkpoint, checkpoint.config
        teachers = [StoreIdentity.from_dict(store) for store in stores_of(checkpoint.facts)]
        self.facts |= {
            "weights": "EMA" if checkpoint.weights == "ema" else "raw",
            "epoch": checkpoint.facts["epoch"],
            "distillation": config["kd"]["name"],
            "teacher stores": [f"{store.teacher} {store.checkpoint_sha256[:12]}" for store in teachers],
            "mask in training": config["objective"]["mask"],
            "seed": config["seed"],
            "code in training": checkpoint.facts["code"],
        }


class OnnxSource(NetworkSource):
    """A network that occ-export wrote as an ONNX file; see `NetworkSource`.

    Raises:
        InputError: views are to be averaged, and the file states classes alone.
    """

    kind = "ONNX file"

    def __init__(self, name: str, file: OnnxFile, views: Sequence[View], device: torch.device) -> None:
        self.probabilities = "logits" in file.outputs  # type: ignore[misc]
        if views and not self.probabilities:
            raise InputError(f"{file.path}: tta= averages probabilities: export it with onnx.outputs=[classes,logits]")
        super().__init__(name, file, Deployed(file), views, device)
        self.file, facts = file, file.facts
        self.facts |= {
            "precision": facts["precision"],
            "runs on": f"ONNX Runtime, CPU, {file.threads} threads",
            "pool": facts["pool"],
            "exported from, sha256": facts["checkpoint_sha256"],
            "code of the export": facts["code"],
        }

    def predict(self, frame: Frame) -> list[Prediction]:
        """The file's answer."""
        found = super().predict(frame)
        return found if self.probabilities else [Prediction(each.semantics_XYZ) for each in found]

    def cost(self, batch: Frame, warmup: int, runs: int) -> dict[str, Any]:
        """Latency alone: nobody counts operations in there."""
        times = milliseconds(lambda: self.answer(batch), self.device, warmup, runs)
        return {
            "latency_ms": {"median": float(np.median(times)), "p95": float(np.percentile(times, 95)), "runs": runs},
            "device": f"{cpu_name()} (ONNX Runtime, {self.file.threads} threads)",
            "precision": self.facts["precision"],
            "image_size": list(batch.images.shape[-2:]),
        }


class StoreSource:
    """A teacher's stores, asked for every voxel as a student would ask; see `Source`.

    A voxel that the teacher has not modelled counts as free, and has no probabilities. Classes are the teacher's own
    where they were stored on this grid, and otherwise those of its answers.

    Args:
        name: heads its column.
        stores: a keyframe is taken from the first one that holds it.
        grid, classes: to score on.
        device: where Gaussians are rendered.

    Raises:
        InputError: a store says nothing of voxels on this grid, or has other classes.
    """

    kind = "teacher store"
    probabilities = True

    def __init__(
        self, name: str, stores: Sequence[TeacherStore], grid: VoxelGrid, classes: ClassSet, device: torch.device
    ) -> None:
        self.name, self.path = name, ", ".join(store.path for store in stores)
        self.teacher = Stored(name, stores, "error", None, 1.0, grid, classes, {"voxels"})
        self.grid, self.classes, self.device = grid, classes, device
        self.facts = {
            "teacher": [store.identity.teacher for store in stores],
            "teacher's checkpoint, sha256": [store.identity.checkpoint_sha256 for store in stores],
            "voxels": ["as stored" if self._as_stored else "rendered from Gaussians"] * len(stores),
        }

    @property
    def stores(self) -> Sequence[TeacherStore]:
        """Where it lies."""
        return self.teacher.stores

    @property
    def _as_stored(self) -> bool:
        return self.teacher.answers["voxels"].name == "voxels"

    def missing(self, tokens: Sequence[str]) -> list[str]:
        """Those of the keyframes that no store holds."""
        return [token for token in tokens if not self.teacher.holds(token)]

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[Frame]:
        """Labels, and what the store says."""
        return _LabelsAnd(self._read, keyframes, labels, remote=self.teacher.remote)

    def _read(self, keyframe: Keyframe) -> dict[str, Any]:
        lidar2ego, classes = keyframe.lidar2ego, {}
        lidar2grid = None if lidar2ego is None else self.grid.from_ego(lidar2ego) @ lidar2ego
        if self._as_stored:
            store = self.teacher.store_of(keyframe.token)
            assert store is not None
            classes = {"classes": store.semantics(keyframe.token)}
        return {"teachers": {self.name: self.teacher.told(keyframe.token)}, "lidar2ego": lidar2grid, **classes}

    def predict(self, frame: ScoredFrame) -> list[Prediction]:
        """Its answers for all voxels."""
        frame = frame.to(self.device)
        taught, shape = self.teacher.taught(frame), self.grid.shape
        predictions = []
        for row in range(len(frame.token)):
            index_V = torch.arange(row * math.prod(shape), (row + 1) * math.prod(shape), device=self.device)
            log_probs_XYZC = taught.voxels(index_V).unflatten(0, shape)
            if self._as_stored:
                log_probs_XYZC = log_probs_XYZC.log_softmax(-1)  # codes are rounded one by one
                classes_XYZ = frame.classes[row]
                covered_XYZ = classes_XYZ != NOT_COVERED
            else:
                classes_XYZ = log_probs_XYZC.argmax(-1).to(torch.uint8)
                covered_XYZ = taught.covered(index_V).unflatten(0, shape)
            classes_XYZ = classes_XYZ.masked_fill(~covered_XYZ, self.classes.free)
            predictions.append(Prediction(classes_XYZ, log_probs_XYZC, covered_XYZ))
        return predictions


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

    def dataset(self, keyframes: Sequence[Keyframe], labels: LabelSource) -> Dataset[Frame]:
        """Labels, and the classes in its files."""
        return _LabelsAnd(self._read, keyframes, labels, remote=False)

    def _read(self, keyframe: Keyframe) -> dict[str, Any]:
        return {"classes": self.folder.read(keyframe.token)}

    def predict(self, frame: ScoredFrame) -> list[Prediction]:
        """The classes in its files."""
        return [Prediction(classes_XYZ) for classes_XYZ in frame.classes]


@dataclass(frozen=True)
class ScoredFrame(Frame):
    """A frame with classes that somebody states.

    Attributes:
        classes: uint8 (X, Y, Z).
    """

    classes: Array = declared(GRID)


class _LabelsAnd(Dataset[ScoredFrame]):
    """Labels as in `FrameDataset`, without images, and the fields of `ScoredFrame` that `read` returns.

    `remote`: whether that is read from an object store; see `distill.loader`.
    """

    def __init__(
        self,
        read: Callable[[Keyframe], dict[str, Any]],
        keyframes: Sequence[Keyframe],
        labels: LabelSource,
        remote: bool,
    ) -> None:
        self.read, self.keyframes, self.labels, self.remote = read, keyframes, labels, remote

    def __len__(self) -> int:
        return len(self.keyframes)

    def __getitem__(self, index: int) -> ScoredFrame:
        keyframe = self.keyframes[index]
        return with_labels(ScoredFrame(token=keyframe.token, **self.read(keyframe)), self.labels, keyframe)
