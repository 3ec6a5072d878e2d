"""A study of distillation: arms x seeds at equal budget, paired, with intervals; a table and a page.

    python benchmarks/distillation.py FOLDER [--study FILE] [--jobs 2] [occ-train-student overrides for all]

FILE (default: distillation.yaml beside this script) names the arms; the first is the control. What is done already in
FOLDER is not done again, so that a study may be interrupted at any time and go on over several sittings.

An arm's number is that of its EMA weights after the last step, on all validation keyframes: no arm picks its best
epoch. Gains are paired by seed. Intervals are 95 % of a bootstrap over seeds and keyframes, the same ones for arm and
control.

Letters: S seeds, K keyframes, C classes, D thresholds of RayIoU, N resamples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from distill.checkpoint import load_checkpoint
from distill.classes import ClassSet
from distill.files import durable, write_durably
from distill.frame import stack
from distill.metrics import Confusion, RayIoU, conventions
from distill.metrics.rays import ray_iou
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset
from distill.store import TeacherStore
from student.evaluation.scorecard import ScenePoses

BIN = Path(sys.executable).parent
RESAMPLES = 2000
METRICS = ("mIoU", "geometric IoU", "RayIoU")


@dataclass(frozen=True)
class Counts:
    """What was counted of each validation keyframe.

    Attributes:
        confusion_KCC: int64, visible voxels, [label, prediction].
        rays_KCC: int64, see `RayIoU.rays_CC`.
        hits_KDC: int64, see `RayIoU.hits_DC`.
    """

    confusion_KCC: np.ndarray
    rays_KCC: np.ndarray
    hits_KDC: np.ndarray

    def metrics(self, classes: ClassSet, weights_K: np.ndarray | None = None) -> np.ndarray:
        """The numbers of `METRICS`, percent; keyframes count by their weights."""
        sums = []
        for counts in (self.confusion_KCC, self.rays_KCC, self.hits_KDC):
            whole = counts.sum(0) if weights_K is None else np.tensordot(weights_K, counts, 1)
            sums.append(torch.from_numpy(whole))
        score = conventions(classes)[0].score(sums[0])
        ray = ray_iou(sums[1], sums[2], classes)["RayIoU"]
        return np.array([float(score.miou), float(score.geometric_iou), float(ray)])

    def per_class(self, classes: ClassSet) -> np.ndarray:
        """IoU of each class, percent, (C,)."""
        score = conventions(classes)[0].score(torch.from_numpy(self.confusion_KCC.sum(0)))
        return score.per_class_iou.numpy()


class Study:
    """Arms, seeds and what they have come to.

    Args:
        folder: of the study.
        plan: of the YAML file.
        extra: overrides for all arms.
    """

    def __init__(self, folder: Path, plan: DictConfig, extra: list[str]) -> None:
        self.folder, self.plan, self.extra = folder, plan, extra
        with initialize_config_module("conf", version_base="1.3"):
            self.config = compose("train", [*plan.common, *extra])
        self.grid, self.classes = instantiate(self.config.grid), instantiate(self.config.classes)
        self.index = open_dataroot(self.config.data)
        self.labels = open_labels(self.config.data, self.grid)
        self.keyframes = self.index.keyframes(self.config.data.val_split)
        self.poses = ScenePoses(self.index, self.grid)

    @property
    def store(self) -> Path:
        """What the teacher said: the plan's own, or that of `make_teacher`."""
        given = self.plan.get("store")
        return self.folder / "teacher.zarr" if given is None else Path(given).resolve()

    def make_teacher(self, environment: dict[str, str]) -> None:
        """Train the teacher on the labels that the control sees, and dump it; nothing if the plan names a store."""
        if self.plan.get("store") is not None:
            return
        data = [
            override
            for override in [*self.plan.common, *self.extra]
            if override.startswith(("data", "trainer.withheld"))
        ]
        run = self.folder / "teacher"
        if not (run / "done").exists():
            self._run("occ-train-student", [*data, *self.plan.teacher.train, f"output={run}"], environment, run)
        if not (self.folder / "teacher.done").exists():
            dumped = [override for override in data if override.startswith("data")]
            given = [
                *dumped,
                *self.plan.teacher.dump,
                f"teacher.checkpoint={run / 'last.pt'}",
                f"store.path={self.store}",
            ]
            self._run("occ-dump", given, environment, self.folder / "dump")
            (self.folder / "teacher.done").touch()

    def run_arm(self, arm: str, seed: int, environment: dict[str, str]) -> None:
        """Train an arm with a seed and count what it predicts."""
        run = self.folder / f"{arm}-seed{seed}"
        if (run / "counts.npz").exists():
            return
        paths = f"teachers.stored.paths=[{self.store}]"
        given = [*self.plan.common, paths, *self.plan.arms[arm], *self.extra, f"seed={seed}", f"output={run}"]
        self._run("occ-train-student", given, environment, run)
        count = [sys.executable, __file__, str(self.folder), "--count", str(run)]
        subprocess.run([*count, "--study", str(self.folder / "plan.yaml")], env=environment, check=True)

    def _run(self, program: str, given: list[str], environment: dict[str, str], run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        with open(run / "log.txt", "ab") as log:
            ended = subprocess.run([BIN / program, *given], env=environment, stdout=log, stderr=log, check=False)
        if ended.returncode:
            raise SystemExit(f"{program} {' '.join(given)} failed: see {run / 'log.txt'}")
        (run / "done").touch()

    def count(self, run: Path) -> None:
        """Count what the EMA weights of a run predict, keyframe by keyframe, into `<run>/counts.npz`."""
        network = load_checkpoint(str(run / "last.pt"), "ema").network()
        frames = FrameDataset(
            self.keyframes,
            labels=self.labels,
            augmentation=None,
            seed=0,
            depth_stride=None,
            **self.config.student.inputs,
        )

        @torch.inference_mode()
        def predict(position: int) -> np.ndarray:
            return network(stack([frames[position]])).voxel_logits_BXYZC[0].argmax(-1).to(torch.uint8).numpy()

        self._save(run / "counts.npz", predict)

    def count_teacher(self) -> None:
        """The same of the teacher's store; what it has not modelled is free."""
        if (self.folder / "teacher.npz").exists():
            return
        store, tokens = TeacherStore(self.store), self.keyframes.tokens

        def predict(position: int) -> np.ndarray:
            semantics = store.semantics(tokens[position])
            return np.where(semantics == 255, self.classes.free, semantics).astype(np.uint8)

        self._save(self.folder / "teacher.npz", predict)

    def _save(self, path: Path, predict: Any) -> None:
        found: dict[str, list[np.ndarray]] = {"confusion": [], "rays": [], "hits": []}
        for position, keyframe in enumerate(self.keyframes):
            labels = self.labels.read(keyframe)
            if labels is None:
                continue
            semantics = predict(position)
            confusion, rays = Confusion(self.classes), RayIoU(self.grid, self.classes)
            confusion.update(semantics, labels["semantics"], labels["mask_camera"])
            rays.update(semantics, labels["semantics"], self.poses.ray_origins(keyframe))
            for name, counts in zip(found, (confusion.counts_CC, rays.rays_CC, rays.hits_DC), strict=True):
                found[name].append(counts.numpy())
        with durable(path) as file:
            np.savez_compressed(file, **{name: np.stack(counts) for name, counts in found.items()})

    def counts_of(self, arm: str, seed: int) -> Counts | None:
        """Of an arm with a seed; None: it is not done yet."""
        return read_counts(self.folder / f"{arm}-seed{seed}" / "counts.npz")


def read_counts(path: Path) -> Counts | None:
    """What `Study.count` wrote."""
    if not path.exists():
        return None
    with np.load(path) as file:
        return Counts(file["confusion"], file["rays"], file["hits"])


def compared(study: Study) -> dict[str, Any]:
    """Means, gains over the control, their intervals and the share of the gap to the teacher; JSON-ready."""
    random = np.random.default_rng(0)
    control, *_ = study.plan.arms
    teacher = read_counts(study.folder / "teacher.npz")
    told: dict[str, Any] = {"metrics": METRICS, "classes": study.classes.names, "arms": {}}
    teacher_M = None if teacher is None else teacher.metrics(study.classes)
    told["teacher"] = None if teacher_M is None else teacher_M.tolist()
    for arm in study.plan.arms:
        pairs = [
            (own, base)
            for seed in study.plan.seeds
            if (own := study.counts_of(arm, seed)) is not None and (base := study.counts_of(control, seed)) is not None
        ]
        if not pairs:
            continue
        values_SM = np.stack([own.metrics(study.classes) for own, _ in pairs])
        gains_SM = values_SM - np.stack([base.metrics(study.classes) for _, base in pairs])
        entry = {"seeds": len(pairs), "mean": values_SM.mean(0).tolist(), "gain": gains_SM.mean(0).tolist()}
        if arm != control:
            resampled_NM = np.stack([resample(pairs, study.classes, random) for _ in range(RESAMPLES)])
            entry["interval"] = np.percentile(resampled_NM, [2.5, 97.5], axis=0).T.tolist()
            if teacher_M is not None:
                gap_M = teacher_M - np.stack([base.metrics(study.classes) for _, base in pairs]).mean(0)
                shares = zip(gains_SM.mean(0).tolist(), gap_M.tolist(), strict=True)
                entry["share of the gap"] = [gain / gap if gap > 0 else None for gain, gap in shares]
        per_class = np.stack([own.per_class(study.classes) for own, _ in pairs])
        entry["per class"] = [None if np.isnan(iou) else float(iou) for iou in np.nanmean(per_class, 0)]
        told["arms"][arm] = entry
    return told


def resample(pairs: list[tuple[Counts, Counts]], classes: ClassSet, random: np.random.Generator) -> np.ndarray:
    """The mean gain over seeds and keyframes drawn with replacement, the same ones for arm and control."""
    keyframes = len(pairs[0][0].confusion_KCC)
    weights_K = np.bincount(random.integers(keyframes, size=keyframes), minlength=keyframes)
    drawn = [pairs[place] for place in random.integers(len(pairs), size=len(pairs))]
    gains = [own.metrics(classes, weights_K) - base.metrics(classes, weights_K) for own, base in drawn]
    return np.mean(gains, 0)


def table(told: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [f"{'arm':<24}{'seeds':>6}" + "".join(f"{name:>34}" for name in METRICS)]
    for arm, entry in told["arms"].items():
        cells = []
        for place in range(len(METRICS)):
            cell = f"{entry['mean'][place]:.2f}"
            if "interval" in entry:
                low, high = entry["interval"][place]
                cell += f" {entry['gain'][place]:+.2f} [{low:+.2f}, {high:+.2f}]"
            cells.append(f"{cell:>34}")
        lines.append(f"{arm:<24}{entry['seeds']:>6}" + "".join(cells))
    if told["teacher"] is not None:
        lines.append(f"{'teacher':<24}{'':>6}" + "".join(f"{value:>34.2f}" for value in told["teacher"]))
    return "\n".join(lines)


def curves(study: Study) -> dict[str, list[list[float]]]:
    """Arm -> [step, validation mIoU] after each epoch, mean over its seeds, on the keyframes that training looks at."""
    found: dict[str, list[list[float]]] = {}
    for arm in study.plan.arms:
        runs = []
        for seed in study.plan.seeds:
            file = study.folder / f"{arm}-seed{seed}" / "metrics.jsonl"
            if file.exists():
                entries = map(json.loads, file.read_text().splitlines())
                runs.append([[entry["step"], entry["val_miou"]] for entry in entries if "val_miou" in entry])
        shortest = min(map(len, runs), default=0)
        if shortest:
            found[arm] = np.mean([run[:shortest] for run in runs], 0).tolist()
    return found


def page(told: dict[str, Any], drawn: dict[str, list[list[float]]]) -> str:
    """A page that needs no network: gains with their intervals, curves over training, IoU by class."""
    heads = "".join(f"<th>{name}</th><th>gain</th>" for name in METRICS)
    rows = "".join(
        f"<tr><th>{arm}</th>"
        + "".join(
            f"<td>{entry['mean'][place]:.2f}</td><td>{_interval(entry, place)}</td>" for place in range(len(METRICS))
        )
        + "</tr>"
        for arm, entry in told["arms"].items()
    )
    classes = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in told["classes"])
    by_class = "".join(
        f"<tr><th>{arm}</th>"
        + "".join(f"<td>{'' if iou is None else f'{iou:.1f}'}</td>" for iou in entry["per class"])
        + "</tr>"
        for arm, entry in told["arms"].items()
    )
    return (
        "<!doctype html><meta charset=utf-8><title>distillation study</title>"
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 8px;text-align:right}</style>"
        "<h1>Does distilling pay?</h1>"
        f"<table><tr><th></th>{heads}</tr>{rows}</table>"
        + "".join(_forest(told, place) for place in range(len(METRICS)))
        + f"<h2>While training</h2>{_plot(drawn)}<h2>IoU by class</h2>"
        f"<table><tr><th></th>{classes}</tr>{by_class}</table>"
    )


def _interval(entry: dict[str, Any], place: int) -> str:
    if "interval" not in entry:
        return "control"
    low, high = entry["interval"][place]
    return f"{entry['gain'][place]:+.2f} [{low:+.2f}, {high:+.2f}]"


def _forest(told: dict[str, Any], place: int) -> str:
    """Gains of all arms over the control with their intervals, for one metric."""
    arms = [(arm, entry) for arm, entry in told["arms"].items() if "interval" in entry]
    reach = max([1.0, *(abs(edge) for _, entry in arms for edge in entry["interval"][place])])

    def x(value: float) -> float:
        return 300 + 140 * value / reach

    lines = [
        f'<text x="150" y="{34 + 22 * row}" text-anchor="end">{arm}</text>'
        f'<line x1="{x(entry["interval"][place][0])}" x2="{x(entry["interval"][place][1])}" y1="{30 + 22 * row}" '
        f'y2="{30 + 22 * row}" stroke="#246" stroke-width="3"/>'
        f'<circle cx="{x(entry["gain"][place])}" cy="{30 + 22 * row}" r="5" fill="#246"/>'
        for row, (arm, entry) in enumerate(arms)
    ]
    height = 40 + 22 * len(arms)
    zero = f'<line x1="300" x2="300" y1="16" y2="{height}" stroke="#999"/>'
    title = f'<text x="300" y="12" text-anchor="middle">{METRICS[place]}: gain, at most {reach:.1f}</text>'
    return f'<svg width="460" height="{height}">{title}{zero}{"".join(lines)}</svg>'


def _plot(drawn: dict[str, list[list[float]]]) -> str:
    """Validation mIoU over steps, a line an arm."""
    points = [point for line in drawn.values() for point in line]
    if not points:
        return ""
    steps, highest = max(point[0] for point in points), max(point[1] for point in points)
    lines = []
    for number, (arm, line) in enumerate(drawn.items()):
        colour = f"hsl({360 * number / len(drawn):.0f} 70% 40%)"
        path = " ".join(f"{40 + 500 * step / steps:.0f},{260 - 230 * miou / highest:.0f}" for step, miou in line)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="560" y="{30 + 18 * number}" fill="{colour}">{arm}</text>')
    lines.append(f'<text x="40" y="20">mIoU, up to {highest:.1f}</text>')
    lines.append(f'<text x="540" y="280" text-anchor="end">{steps:.0f} steps</text>')
    return f'<svg width="760" height="290">{"".join(lines)}</svg>'


def main() -> None:
    """Run what is not done yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--jobs", type=int, default=1, help="arms that are trained at a time")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    plan = OmegaConf.load(options.study)
    assert isinstance(plan, DictConfig)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(folder, plan, options.overrides)
    if options.count is not None:
        study.count(options.count)
        return
    OmegaConf.save(OmegaConf.merge(plan, {"common": [*plan.common, *options.overrides]}), folder / "plan.yaml")
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    study.make_teacher({**os.environ})
    study.count_teacher()
    # seed by seed, so that whoever looks early sees all arms
    tasks = [(arm, seed) for seed in plan.seeds for arm in plan.arms]
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(tasks), desc="study", unit="run") as progress:
        for _ in pool.map(lambda task: study.run_arm(*task, environment), tasks):
            progress.update()
    told = compared(study)
    write_durably(folder / "study.json", json.dumps(told, indent=1).encode())
    write_durably(folder / "study.html", page(told, curves(study)).encode())
    print(f"{table(told)}\npage: {folder / 'study.html'}")


if __name__ == "__main__":
    main()
