"""occ-eval: score checkpoints, teacher stores and folders of predictions on labelled keyframes, side by side."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from distill import ranks
from distill.checkpoint import Checkpoint, code_version
from distill.command import command
from distill.errors import InputError
from distill.metrics import OccupancyScore
from distill.nuscenes.frames import collate, to_device
from distill.nuscenes.index import Keyframe, Keyframes
from distill.nuscenes.labels import LabelSource
from student.evaluation.cost import network_cost
from student.evaluation.folder import begin, dataroot, report_folder
from student.evaluation.opening import Subject, open_files, open_subject, settings_of
from student.evaluation.page import write_page
from student.evaluation.pictures import check_wanted, draw_pictures
from student.evaluation.predictions import write_prediction
from student.evaluation.report import write_numbers
from student.evaluation.robustness import CorruptedFrames, Corruption, corruptions, with_worst
from student.evaluation.scorecard import ScenePoses, Scorecard, json_number, self_check
from student.evaluation.sources import CheckpointSource, Prediction, Source


@command("eval")
def main(config: DictConfig) -> None:
    """Score what is configured; see conf/eval.yaml."""
    device = ranks.device(config.device)
    opened = open_files(config)
    settings = settings_of(config, opened)
    own_data = any(isinstance(source, Checkpoint) for source in opened.values())
    with ranks.process_group(device), report_folder(config, settings, own_data) as output:
        subject = open_subject(config, opened, settings, device, output)
        if ranks.rank() == 0:
            print(subject.told, flush=True)
        check_wanted(config.pictures, subject.labelled)
        evaluation = Evaluation(config, subject, device)
        if not subject.labelled:
            evaluation.export()
            print(f"{len(subject.keyframes)} predictions of each source are in {config.export}; none has labels")
            return
        results = evaluation.run()
        if ranks.rank() > 0:
            return
        miou, page = evaluation.keyframe_miou, output / "report.html"
        begin(output)
        (output / "summary.txt").write_text(f"{subject.told}\n")
        write_numbers(output, results, miou, subject)
        pictures = draw_pictures(config.pictures, subject, miou, evaluation.predictions, output)
        write_page(page, results, subject.classes, subject.grid, pictures)
        print(f"report: {page}")


class Evaluation:
    """One pass over this process's keyframes for each source.

    Processes take whole scenes, so that each keyframe follows the one before it.

    Args:
        config: of conf/eval.yaml.
        subject: what is scored.
        device: where networks run and metrics count.

    Attributes:
        keyframe_miou: source -> sample token -> mIoU, of all processes.
    """

    def __init__(self, config: DictConfig, subject: Subject, device: torch.device) -> None:
        self.config, self.subject, self.device = config, subject, device
        self.corruptions = corruptions(config.robustness)
        self.poses = ScenePoses(subject.index, subject.grid)
        self.keyframe_miou: dict[str, dict[str, float]] = {}
        scenes = list(dict.fromkeys(keyframe.scene for keyframe in subject.keyframes))
        ranks.check_enough(len(scenes), "scenes")
        own = set(scenes[ranks.rank() :: ranks.world_size()])
        self.mine = subject.index.select([keyframe.token for keyframe in subject.keyframes if keyframe.scene in own])

    def run(self) -> dict[str, Any]:
        """Score all sources; every process returns the same numbers, but for `cost`."""
        checked = self._self_check()
        results = {source.name: self._source(source) for source in self.subject.sources}
        return {"scored": self._scored(checked), "sources": results}

    def export(self) -> None:
        """Write the predictions of all sources, and score nothing."""
        for source in self.subject.sources:
            for keyframe, prediction, _ in self._pass(source.name, source.dataset, source.predict):
                self._write(source, keyframe, prediction)

    def _write(self, source: Source, keyframe: Keyframe, prediction: Prediction) -> None:
        folder = Path(self.config.export) / source.name
        write_prediction(folder, keyframe.token, prediction.semantics_XYZ.cpu().numpy())

    def _source(self, source: Source) -> dict[str, Any]:
        card = self._card(source.probabilities)
        for keyframe, prediction, sample in self._pass(source.name, source.dataset, source.predict):
            if self.config.export is not None:
                self._write(source, keyframe, prediction)
            if sample["labelled"]:
                card.update(prediction, sample["semantics"], sample["mask_camera"], keyframe)
        result = {"kind": source.kind, "path": source.path, "facts": source.facts, **card.compute()}
        self.keyframe_miou[source.name] = gathered(card.keyframe_miou)
        if isinstance(source, CheckpointSource):
            result |= self._of_network(source, result["metrics"])
        return result

    def _of_network(self, source: CheckpointSource, metrics: dict[str, Any]) -> dict[str, Any]:
        """What only a network has: its cost, and its scores on corrupted input."""
        result: dict[str, Any] = {} if ranks.rank() else {"cost": self._cost(source)}
        conditions = [self._condition(source, corruption) for corruption in self.corruptions]
        if conditions:
            result["robustness"] = with_worst([self._row("clean", metrics), *conditions])
        return result

    def _card(self, probabilities: bool) -> Scorecard:
        subject = self.subject
        return Scorecard(
            subject.grid, subject.classes, self.config.metrics, self.poses, self.device, probabilities=probabilities
        )

    def _condition(self, source: CheckpointSource, corruption: Corruption) -> dict[str, Any]:
        """The scores of a network whose input is corrupted."""

        def dataset(keyframes: Keyframes, labels: LabelSource) -> Dataset[dict[str, Any]]:
            return CorruptedFrames(source.dataset(keyframes, labels), corruption)

        score = OccupancyScore(self.subject.classes).to(self.device)
        for _, prediction, sample in self._pass(f"{source.name}, {corruption.name}", dataset, source.predict):
            if sample["labelled"]:
                score.update(prediction.semantics_XYZ, sample["semantics"], sample["mask_camera"])
        found = {name: json_number(value) for name, value in score.compute().items() if value.ndim == 0}
        return self._row(corruption.name, found)

    def _row(self, condition: str, metrics: dict[str, Any]) -> dict[str, Any]:
        name = self.subject.classes.convention
        return {
            "condition": condition,
            "miou": metrics[f"{name} mIoU"],
            "geometric_iou": metrics[f"{name} geometric IoU"],
        }

    def predictions(self, source: Source, keyframes: Keyframes) -> list[tuple[Keyframe, Prediction, dict[str, Any]]]:
        """What a source says about some keyframes, and the sample it says it of."""
        return list(self._pass(f"{source.name}, pictures", source.dataset, source.predict, keyframes))

    def _pass(
        self,
        title: str,
        dataset: Callable[[Keyframes, LabelSource], Dataset[dict[str, Any]]],
        predict: Callable[[dict[str, Any]], list[Prediction]],
        keyframes: Keyframes | None = None,
    ) -> Iterator[tuple[Keyframe, Prediction, dict[str, Any]]]:
        """Keyframe, prediction and sample, keyframe by keyframe in order; without `keyframes`, this process's."""
        keyframes = self.mine if keyframes is None else keyframes
        loader = DataLoader(
            dataset(keyframes, self.subject.labels),
            batch_size=self.config.batch_size,
            num_workers=self.config.workers,
            collate_fn=collate,
        )
        place = 0
        with tqdm(total=len(keyframes), desc=title, unit="keyframe", disable=ranks.rank() != 0) as progress:
            for batch in loader:
                for row, prediction in enumerate(predict(batch)):
                    sample = {key: batch[key][row] for key in ("labelled", "semantics", "mask_camera")}
                    yield keyframes[place], prediction, sample
                    place += 1
                    progress.update()

    def _cost(self, source: CheckpointSource) -> dict[str, Any]:
        sample = source.dataset(self.mine[:1], self.subject.labels)[0]
        settings = self.config.cost
        batch = to_device(collate([sample]), self.device)
        return network_cost(source.network, batch, self.device, torch.float32, settings.warmup, settings.runs)

    def _self_check(self) -> str:
        """On the first keyframe that has something to score; there must be one."""
        classes, seen = self.subject.classes, 0
        for keyframe in self.subject.labelled:
            labels = self.subject.labels.read(keyframe)
            assert labels is not None
            visible_V = labels["semantics"][labels["mask_camera"]]
            seen += visible_V.size
            if np.isin(visible_V, classes.scored).any():
                tensors = {name: torch.from_numpy(array) for name, array in labels.items()}
                return self_check(self._card(False), self._card(False), tensors, keyframe)
        what = "none of their visible voxels is occupied" if seen else "their masks are empty: no voxel is visible"
        raise InputError(
            f"nothing can be scored on the {len(self.subject.labelled)} labelled keyframes of split "
            f"{self.subject.split} of {self.subject.data.root}: {what}; give labels with mask_camera, or another split"
        )

    def _scored(self, checked: str) -> dict[str, Any]:
        """The facts that hold for all sources."""
        subject, classes = self.subject, self.subject.classes
        scored, gift = classes.scored, classes.unlabelled_iou
        return {
            "data": subject.data.name,
            "dataroot": dataroot(subject.data),
            "split": subject.split,
            "keyframes": len(subject.labelled),
            "unlabelled": subject.unlabelled,
            "grid": subject.grid.name,
            "convention": classes.convention,
            "classes": list(classes.names),
            "free": classes.free,
            "voxels": classes.counted,
            "metric": f"{classes.convention} mIoU: one confusion matrix, classes {scored.start}-{scored.stop - 1} "
            f"averaged, {classes.names[classes.free]} counted as an error"
            + ("" if gift is None else f", a class without labels counts {gift:.0f}"),
            "code": code_version(),
            "self_check": checked,
            "command": shlex.join(["occ-eval", *sys.argv[1:]]),
        }


def gathered(numbers: dict[str, float]) -> dict[str, float]:
    """The entries of all processes, in the order of their keys."""
    if not dist.is_initialized():
        return numbers
    parts: list[dict[str, float]] = [{} for _ in range(ranks.world_size())]
    dist.all_gather_object(parts, numbers)
    return {key: value for part in parts for key, value in part.items()}
