"""What an evaluation leaves behind: a table on screen, metrics.json, per_class.csv, pictures and a page with them."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from distill.checkpoint import Checkpoint
from distill.classes import ClassSet
from distill.errors import InputError
from distill.metrics import OccupancyScore
from distill.nuscenes.index import Keyframe
from distill.picture import Painter

CAMERA_PIXELS = 704  # width of a camera picture in a panel
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>occ-eval</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;
color:#222}}table{{border-collapse:collapse}}td,th{{padding:.2em 1em;text-align:right;border-bottom:1px solid #ddd}}
td:first-child,th:first-child{{text-align:left}}img{{max-width:100%}}</style>
<h1>{title}</h1><p>{facts}</p>{table}{pictures}</html>
"""


class Report:
    """Collects the pictures and numbers of one evaluation in a folder.

    Args:
        output: the folder.
        classes: the class set that is scored.
        checkpoint: what is scored.
        settings: the configuration it is scored with.
        split: name of the split.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self, output: Path, classes: ClassSet, checkpoint: Checkpoint, settings: DictConfig, split: str
    ) -> None:
        self.output = output
        self.classes = classes
        self.checkpoint = checkpoint
        self.settings = settings
        self.split = split
        self.painter = Painter(instantiate(settings.grid), classes)
        self.panels: list[Path] = []
        try:
            (output / "panels").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{output}: cannot write here ({error.strerror}): choose another output=") from error

    def add_panel(self, keyframe: Keyframe, sample: dict[str, Any]) -> None:
        """Draw one keyframe: six cameras above ground truth, teacher and student."""
        columns: dict[str, np.ndarray] = {}
        if sample["labelled"]:
            columns["ground truth"] = sample["semantics"]
        columns |= {who: sample[who] for who in ("teacher", "student") if who in sample}
        mask = sample["mask_camera"] if sample["labelled"] else None
        picture = self.painter.panel([_thumbnail(camera.path) for camera in keyframe.cameras], columns, mask)
        path = self.output / "panels" / f"{keyframe.scene}_{keyframe.token}.png"
        Image.fromarray(picture).save(path)
        self.panels.append(path)

    def finish(self, scores: dict[str, OccupancyScore], keyframes: int) -> None:
        """Print the table and write metrics.json, per_class.csv and report.html."""
        results = {who: score.result() for who, score in scores.items() if score.keyframes}
        facts = self._facts(keyframes)
        metrics = {who: result.to_dict(self.classes) for who, result in results.items()}
        (self.output / "metrics.json").write_text(json.dumps(facts | metrics, indent=2) + "\n")
        rows = self._rows(results)
        with open(self.output / "per_class.csv", "w", newline="") as stream:
            csv.writer(stream).writerows(rows)
        print(_as_text(rows))
        print(f"{self._sentence(facts)}\nreport: {self.output / 'report.html'}")
        self._write_page(facts, rows)

    def _facts(self, keyframes: int) -> dict[str, Any]:
        scored, unlabelled = self.classes.scored, self.classes.unlabelled_iou
        gift = "" if unlabelled is None else f", a class without labels counts {unlabelled:.0f}"
        return {
            "checkpoint": str(self.checkpoint.path),
            "sha256": self.checkpoint.sha256,
            "weights": self.checkpoint.weights,
            "trained": self.checkpoint.facts,
            "data": self.settings.data.name,
            "split": self.split,
            "keyframes": keyframes,
            "metric": f"{self.classes.convention} mIoU: one confusion matrix, classes {scored.start}-{scored.stop - 1} "
            f"averaged, {self.classes.names[self.classes.free]} counted as an error{gift}",
            "voxels_of_scoring": self.classes.counted,
            "mask_of_training": self.settings.trainer.loss.mask,
            "grid": self.settings.grid.path,
            "seed": self.settings.seed,
        }

    def _sentence(self, facts: dict[str, Any]) -> str:
        return (
            f"{facts['keyframes']} keyframes of {facts['data']} {facts['split']}, {facts['voxels_of_scoring']}, "
            f"{facts['weights'].upper()} weights of {facts['checkpoint']}, code {self.checkpoint.facts['code']}"
        )

    def _rows(self, results: dict[str, Any]) -> list[list[str]]:
        """The table: a header, the headline numbers, then one row per class."""
        header = ["IoU in percent", *results]
        headline = [
            [f"{self.classes.convention} mIoU", *(f"{result.miou:.2f}" for result in results.values())],
            ["geometric IoU", *(f"{result.geometric_iou:.2f}" for result in results.values())],
        ]
        per_class = [
            [name, *(f"{result.per_class_iou[index]:.2f}" for result in results.values())]
            for index, name in enumerate(self.classes.names)
        ]
        return [header, *headline, *per_class]

    def _write_page(self, facts: dict[str, Any], rows: list[list[str]]) -> None:
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        table = "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
        pictures = "".join(f'<h2>{path.stem}</h2><img src="panels/{path.name}">' for path in self.panels)
        page = PAGE.format(title="occ-eval", facts=html.escape(self._sentence(facts)), table=table, pictures=pictures)
        (self.output / "report.html").write_text(page)


def _thumbnail(path: Path) -> np.ndarray:
    """A camera picture, RGB uint8, CAMERA_PIXELS wide."""
    with Image.open(path) as image:
        image.draft("RGB", (CAMERA_PIXELS, CAMERA_PIXELS * image.height // image.width))
        height = round(CAMERA_PIXELS * image.height / image.width)
        return np.asarray(image.convert("RGB").resize((CAMERA_PIXELS, height)))


def _as_text(rows: list[list[str]]) -> str:
    width = max(len(row[0]) for row in rows) + 2
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(12) for cell in row[1:]) for row in rows)
