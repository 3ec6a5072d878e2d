"""A study of distillation: arms x budgets x seeds, paired, with intervals; a table and a page.

    python benchmarks/distillation.py FOLDER [--study FILE] [--jobs 2] [--arms A B] [--budgets short] [-- overrides]

FILE (default: distillation.yaml beside this script) says what is trained. What is done already in FOLDER is not done
again, so that a study may be interrupted at any time and go on over several sittings; --arms and --budgets name what
this sitting trains, and the page shows all that there is.

A teacher is trained on the labels that its arms see, and dumped for all keyframes. An arm's number is that of its EMA
weights after the last step, on all validation keyframes: no arm picks its best epoch. What is compared has the same
steps, batches, augmentation and initial weights, and is paired by seed. Intervals are 95 % of a bootstrap over seeds
and keyframes, the same ones for arm and control.

Letters: S seeds, K keyframes, C classes, D thresholds of RayIoU, M metrics, N resamples.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Collection
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
from distill.files import durable
from distill.frame import stack
from distill.metrics import Confusion, RayIoU, conventions
from distill.metrics.rays import ray_iou
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset
from distill.store import TeacherStore
from student.evaluation.scorecard import ScenePoses

BIN = Path(sys.executable).parent
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
    """What is trained, and what has come of it.

    Args:
        folder: of the study.
        plan: of the YAML file.
        extra: overrides for all runs.
    """

    def __init__(self, folder: Path, plan: DictConfig, extra: list[str]) -> None:
        self.folder, self.plan = folder, plan
        self.common = [*plan.common, *extra]
        with initialize_config_module("conf", version_base="1.3"):
            self.config = compose("train", self.common)
        self.grid, self.classes = instantiate(self.config.grid), instantiate(self.config.classes)
        self.index = open_dataroot(self.config.data)
        self.labels = open_labels(self.config.data, self.grid)
        self.keyframes = self.index.keyframes(self.config.data.val_split)
        self.poses = ScenePoses(self.index, self.grid)

    def runs(self, arms: Collection[str], budgets: Collection[str]) -> list[tuple[str, str, int]]:
        """What these arms and budgets come to: seed by seed, so that whoever looks early sees all arms."""
        return [
            (arm, budget, seed)
            for seed in self.plan.seeds
            for budget in self.plan.budgets
            for arm, told in self.plan.arms.items()
            if arm in arms and budget in budgets and budget in told.get("budgets", self.plan.budgets)
        ]

    def teachers(self, arms: Collection[str]) -> list[str]:
        """Those of some arms."""
        return list(dict.fromkeys(told.teacher for arm, told in self.plan.arms.items() if arm in arms and told.teacher))

    def store(self, teacher: str) -> Path:
        """What a teacher said: its own, if the plan names one, or that of `make_teacher`."""
        given = self.plan.teachers[teacher].get("store")
        return self.folder / "teachers" / f"{teacher}.zarr" if given is None else Path(given).resolve()

    def make_teacher(self, teacher: str, environment: dict[str, str]) -> None:
        """Train a teacher, dump it and count what it says; nothing is trained if the plan names a store."""
        told, run = self.plan.teachers[teacher], self.folder / "teachers" / teacher
        counted = run / "counts.npz"
        if counted.exists():
            return
        data = [override for override in self.common if override.startswith("data")]
        if told.get("store") is None:
            self._run("occ-train-student", [*data, *flat(told.train), f"output={run}"], environment, run)
            saved = [f"teacher.checkpoint={run / 'last.pt'}", f"store.path={self.store(teacher)}"]
            self._run("occ-dump", [*data, *flat(told.dump), *saved], environment, run)
        run.mkdir(parents=True, exist_ok=True)
        store, tokens = TeacherStore(self.store(teacher)), self.keyframes.tokens

        def predict(position: int) -> np.ndarray:
            semantics = store.semantics(tokens[position])  # what it has not modelled is free
            return np.where(semantics == 255, self.classes.free, semantics).astype(np.uint8)

        self._save(counted, predict)

    def folder_of(self, arm: str, budget: str, seed: int) -> Path:
        """Of a run."""
        return self.folder / budget / f"{arm}-seed{seed}"

    def run_arm(self, arm: str, budget: str, seed: int, environment: dict[str, str]) -> None:
        """Train an arm with a seed and count what it predicts."""
        run, told = self.folder_of(arm, budget, seed), self.plan.arms[arm]
        if (run / "counts.npz").exists():
            return
        stores = [f"teachers.stored.paths=[{self.store(told.teacher)}]"] if told.teacher else []
        given = [*self.common, *flat(self.plan.budgets[budget]), *stores, *flat(told.given)]
        self._run("occ-train-student", [*given, f"seed={seed}", f"output={run}"], environment, run)
        count = [sys.executable, __file__, str(self.folder), "--study", str(self.folder / "plan.yaml")]
        subprocess.run([*count, "--count", str(run)], env=environment, check=True)

    def _run(self, program: str, given: list[str], environment: dict[str, str], run: Path) -> None:
        """Once; what it says is in `<run>/log.txt`."""
        run.mkdir(parents=True, exist_ok=True)
        if (run / f"{program}.done").exists():
            return
        with open(run / "log.txt", "ab") as log:
            ended = subprocess.run([BIN / program, *given], env=environment, stdout=log, stderr=log, check=False)
        if ended.returncode:
            raise SystemExit(f"{program} {' '.join(given)} failed: see {run / 'log.txt'}")
        (run / f"{program}.done").touch()

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


def flat(given: Any) -> list[str]:
    """Overrides, of which some may come as lists of their own (`${name}` in a plan)."""
    return [one for each in given for one in ([each] if isinstance(each, str) else flat(each))]


def read_counts(path: Path) -> Counts | None:
    """What `Study.count` wrote."""
    if not path.exists():
        return None
    with np.load(path) as file:
        return Counts(file["confusion"], file["rays"], file["hits"])


def main() -> None:
    """Run what is not done yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--arms", nargs="*", help="which to train now (all)")
    parser.add_argument("--budgets", nargs="*", help="which to train now (all)")
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
    OmegaConf.save(OmegaConf.merge(plan, {"common": study.common}), folder / "plan.yaml")
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))}
    arms, budgets = options.arms or list(plan.arms), options.budgets or list(plan.budgets)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda teacher: study.make_teacher(teacher, environment), study.teachers(arms)))
        runs = study.runs(arms, budgets)
        with tqdm(total=len(runs), desc="study", unit="run") as progress:
            for _ in pool.map(lambda run: study.run_arm(*run, environment), runs):
                progress.update()


if __name__ == "__main__":
    main()
