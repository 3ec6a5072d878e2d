"""occ-eval: score checkpoints, teacher stores and folders of predictions on labelled keyframes, side by side."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch.utils.data import Dataset
from tqdm import tqdm

from distill import ranks
from distill.checkpoint import Checkpoint, code_version
from distill.command import command
from distill.errors import InputError
from distill.frame import Frame, stack
from distill.loader import frame_loader
from distill.memory import keep_freed_memory
from distill.metrics import OccupancyScore
from distill.metrics.bootstrap import Counts
from distill.nuscenes.index import Keyframes
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.labels import LabelSource
from distill.pictures.voxels import Painter
from distill.teaching.labels import TeacherLabels
from student.evaluation.comparison import Comparison, open_comparison
from student.evaluation.control import find_arms
from student.evaluation.folder import begin, report_folder
from student.evaluation.page import KeyframePictures, write_page
from student.evaluation.pictures import Volumes, check_wanted, choose, draw, save_panel
from student.evaluation.predictions import write_prediction
from student.evaluation.report import write_numbers
from student.evaluation.request import open_files, settings_of
from student.evaluation.robustness import CorruptedFrames, Corruption, corruptions, with_worst
from student.evaluation.scorecard import ScenePoses, Scorecard, json_number, self_check
from student.evaluation.sources import NetworkSource, Prediction, Source
from student.evaluation.verdict import METRICS, verdict

T = TypeVar("T")


@command("eval")
def main(config: DictConfig) -> None:
    """Score what is configured; see conf/eval.yaml."""
    device = ranks.device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    opened = open_files(config)
    settings = settings_of(config, opened)
    own_data = any(isinstance(source, Checkpoint) for source in opened.values())
    with ranks.process_group(device), report_folder(config, settings, own_data) as output:
        comparison = open_comparison(config, opened, settings, device, output)
        if ranks.rank() == 0:
            print(comparison.told, flush=True)
        check_wanted(config.pictures, comparison.labelled)
        evaluation = Evaluation(config, comparison, device)
        if not comparison.labelled:
            evaluation.export()
            print(f"{len(comparison.keyframes)} predictions of each source are in {config.export}; none has labels")
            return
        results = evaluation.run()
        if ranks.rank() > 0:
            return
        results = evaluation.verdict(results["sources"]) | results
        miou, page = evaluation.keyframe_miou, output / "report.html"
        begin(output)
        (output / "summary.txt").write_text(f"{comparison.told}\n")
        write_numbers(output, results, miou, comparison)
        pictures = evaluation.pictures(choose(config.pictures, miou[comparison.sources[0].name]))
        for shown in pictures:
            save_panel(output / "panels", evaluation.painter, shown)
        write_page(page, results, comparison.classes, comparison.grid, pictures)
        print(f"report: {page}")


class Evaluation:
    """One pass over this process's keyframes for each source.

    Processes take whole scenes, so that each keyframe follows the one before it.

    Args:
        config: of conf/eval.yaml.
        comparison: what is scored on what.
        device: where networks run and metrics count.

    Attributes:
        keyframe_miou: source -> sample token -> mIoU, of all processes.
        keyframe_counts: the same of `Scorecard.keyframe_counts`, of a student and its control.
        painter: of the grid and class set.
    """

    def __init__(self, config: DictConfig, comparison: Comparison, device: torch.device) -> None:
        self.config, self.comparison, self.device = config, comparison, device
        self.corruptions = corruptions(config.robustness, comparison.index.channels)
        self.poses = ScenePoses(comparison.index, comparison.grid)
        self.painter = Painter(comparison.grid, comparison.classes)
        self.keyframe_miou: dict[str, dict[str, float]] = {}
        self.keyframe_counts: dict[str, dict[str, Counts]] = {}
        self.arms = find_arms(comparison.sources)
        scenes = list(dict.fromkeys(keyframe.scene for keyframe in comparison.keyframes))
        ranks.check_enough(len(scenes), "scenes")
        own = set(scenes[ranks.rank() :: ranks.world_size()])
        self.mine = comparison.index.select(
            [keyframe.token for keyframe in comparison.keyframes if keyframe.scene in own]
        )

    def run(self) -> dict[str, Any]:
        """Score all sources; every process returns the same numbers, but for `cost`."""
        checked = self._self_check()
        results = {source.name: self._source(source) for source in self.comparison.sources}
        return {"scored": self._scored(checked), "sources": results}

    def export(self) -> None:
        """Write the predictions of all sources, and score nothing."""
        for source in self.comparison.sources:
            for keyframe, prediction, _ in self._pass(source.name, source.dataset, source.predict):
                self._write(source, keyframe, prediction)

    def _write(self, source: Source, keyframe: Keyframe, prediction: Prediction) -> None:
        folder = Path(self.config.export) / source.name
        write_prediction(folder, keyframe.token, prediction.semantics_XYZ.cpu().numpy())

    def _source(self, source: Source) -> dict[str, Any]:
        card = self._card(source.probabilities)
        for keyframe, prediction, frame in self._pass(source.name, source.dataset, source.predict):
            if self.config.export is not None:
                self._write(source, keyframe, prediction)
            if frame.labelled:
                card.update(prediction, frame.semantics, frame.mask_camera, keyframe)
        result = {"kind": source.kind, "path": source.path, "facts": source.facts, **card.compute()}
        self.keyframe_miou[source.name] = gathered(card.keyframe_miou)
        if self.arms is not None and source in self.arms[:2]:
            self.keyframe_counts[source.name] = gathered(card.keyframe_counts)
        if isinstance(source, NetworkSource):
            result |= self._of_network(source, result["metrics"])
        return result

    def verdict(self, sources: dict[str, Any]) -> dict[str, Any]:
        """`verdict`, where a student has a control beside it; `sources` are the results of all."""
        arms, classes = self.arms, self.comparison.classes
        if arms is None:
            return {}
        counts = {
            name: [torch.stack(each) for each in zip(*map(of.get, self.comparison.labelled.tokens), strict=True)]
            for name, of in self.keyframe_counts.items()
        }
        names = (f"{classes.convention} mIoU", f"{classes.convention} geometric IoU", "RayIoU")
        metrics = {} if arms.teacher is None else sources[arms.teacher.name]["metrics"]
        teacher = {short: metrics.get(name) for short, name in zip(METRICS, names, strict=True)}
        return {"verdict": verdict(arms, counts, teacher, classes)}

    def _of_network(self, source: NetworkSource, metrics: dict[str, Any]) -> dict[str, Any]:
        """What only a network has: its cost, and its scores on corrupted input."""
        result: dict[str, Any] = {} if ranks.rank() else {"cost": self._cost(source)}
        conditions = [self._condition(source, corruption) for corruption in self.corruptions]
        if conditions:
            result["robustness"] = with_worst([self._row("clean", metrics), *conditions])
        return result

    def _card(self, probabilities: bool) -> Scorecard:
        comparison = self.comparison
        return Scorecard(
            comparison.grid,
            comparison.classes,
            self.config.metrics,
            self.poses,
            self.device,
            probabilities=probabilities,
        )

    def _condition(self, source: NetworkSource, corruption: Corruption) -> dict[str, Any]:
        """The scores of a network whose input is corrupted."""

        def dataset(keyframes: Keyframes, labels: LabelSource) -> Dataset[Frame]:
            return CorruptedFrames(source.dataset(keyframes, labels), corruption)

        score = OccupancyScore(self.comparison.classes).to(self.device)
        for _, prediction, frame in self._pass(f"{source.name}, {corruption.name}", dataset, source.predict):
            if frame.labelled:
                score.update(prediction.semantics_XYZ, frame.semantics, frame.mask_camera)
        found = {name: json_number(value) for name, value in score.compute().items() if value.ndim == 0}
        return self._row(corruption.name, found)

    def _row(self, condition: str, metrics: dict[str, Any]) -> dict[str, Any]:
        name = self.comparison.classes.convention
        return {
            "condition": condition,
            "miou": metrics[f"{name} mIoU"],
            "geometric_iou": metrics[f"{name} geometric IoU"],
        }

    def pictures(self, titles: dict[str, str]) -> list[KeyframePictures]:
        """Predict some keyframes once more, and draw them.

        Args:
            titles: sample token -> why it is shown.
        """
        keyframes = self.comparison.index.select(list(titles))
        pictures = []
        for keyframe, volumes in zip(keyframes, self._volumes(keyframes), strict=True):
            miou = {name: of[keyframe.token] for name, of in self.keyframe_miou.items()}
            pictures.append(draw(self.painter, keyframe, volumes, titles[keyframe.token], miou))
        return pictures

    def _volumes(self, keyframes: Keyframes) -> list[Volumes]:
        """Labels and predictions of labelled keyframes."""
        found: dict[str, Volumes] = {}
        for source in self.comparison.sources if keyframes else []:
            for keyframe, prediction, frame in self._pass(
                f"{source.name}, pictures", source.dataset, source.predict, keyframes
            ):
                labels = {"ground truth": frame.semantics.numpy()}
                volumes = found.setdefault(keyframe.token, Volumes(labels, frame.mask_camera.numpy()))
                volumes.semantics[source.name] = prediction.semantics_XYZ.cpu().numpy()
        return list(found.values())

    def _pass(
        self,
        title: str,
        dataset: Callable[[Keyframes, LabelSource], Dataset[Frame]],
        predict: Callable[[Any], list[Prediction]],
        keyframes: Keyframes | None = None,
    ) -> Iterator[tuple[Keyframe, Prediction, Frame]]:
        """Keyframe, prediction and labels, keyframe by keyframe in order; without `keyframes`, this process's."""
        keyframes = self.mine if keyframes is None else keyframes
        frames = dataset(keyframes, self.comparison.labels)
        loader = frame_loader(frames, self.config.workers, batch_size=self.config.batch_size)
        place = 0
        with tqdm(total=len(keyframes), desc=title, unit="keyframe", disable=ranks.rank() != 0) as progress:
            for frame in loader:
                for row, prediction in enumerate(predict(frame)):
                    yield keyframes[place], prediction, _labels(frame, row)
                    place += 1
                    progress.update()

    def _cost(self, source: NetworkSource) -> dict[str, Any]:
        frame = source.dataset(self.mine[:1], self.comparison.labels)[0]
        settings = self.config.cost
        batch = stack([frame]).to(self.device)
        return source.cost(batch, settings.warmup, settings.runs)

    def _self_check(self) -> str:
        """On the first keyframe that has something to score; there must be one."""
        comparison, seen = self.comparison, 0
        for keyframe in comparison.labelled:
            labels = comparison.labels.read(keyframe)
            assert labels is not None
            visible_V = labels["semantics"][labels["mask_camera"]]
            seen += visible_V.size
            if np.isin(visible_V, comparison.classes.scored).any():
                tensors = {name: torch.from_numpy(array) for name, array in labels.items()}
                return self_check(self._card(False), self._card(False), tensors, keyframe)
        what = "none of their visible voxels is occupied" if seen else "their masks are empty: no voxel is visible"
        raise InputError(
            f"nothing can be scored on the {len(comparison.labelled)} labelled keyframes of split "
            f"{comparison.split} of {comparison.index.source}: {what}; give labels with mask_camera, or another split"
        )

    def _scored(self, checked: str) -> dict[str, Any]:
        """The facts that hold for all sources."""
        comparison, classes = self.comparison, self.comparison.classes
        scored, gift = classes.scored, classes.unlabelled_iou
        teacher = comparison.labels.teacher if isinstance(comparison.labels, TeacherLabels) else None
        against = "" if teacher is None else f", against what teacher {teacher} says, not against labels"
        return {
            "data": comparison.data.name,
            "dataroot": str(comparison.index.source),
            "split": comparison.split,
            "keyframes": len(comparison.labelled),
            "unlabelled": comparison.unlabelled,
            "grid": comparison.grid.name,
            "convention": classes.convention,
            "classes": list(classes.names),
            "free": classes.free,
            "voxels": classes.counted + against,
            "metric": f"{classes.convention} mIoU: one confusion matrix, classes {scored.start}-{scored.stop - 1} "
            f"averaged, {classes.names[classes.free]} counted as an error"
            + ("" if gift is None else f", a class without labels counts {gift:.0f}"),
            "code": code_version(),
            "self_check": checked,
            "command": shlex.join(["occ-eval", *sys.argv[1:]]),
        }


def _labels(frame: Frame, row: int) -> Frame:
    """What a frame of a batch is scored against."""
    return Frame(labelled=frame.labelled[row], semantics=frame.semantics[row], mask_camera=frame.mask_camera[row])


def gathered(own: dict[str, T]) -> dict[str, T]:
    """The entries of all processes, process by process."""
    if not dist.is_initialized():
        return own
    parts: list[dict[str, T]] = [{} for _ in range(ranks.world_size())]
    dist.all_gather_object(parts, own)
    return {key: value for part in parts for key, value in part.items()}
