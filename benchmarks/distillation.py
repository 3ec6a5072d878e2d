"""A study of distillation: arms x budgets x seeds, paired, with intervals; tables and a page.

    python benchmarks/distillation.py FOLDER [--study FILE] [--jobs 2] [--arms A B] [--budgets short] [-- overrides]
    python benchmarks/distillation.py FOLDER --cost

FILE (default: distillation.yaml beside this script) says what is trained. What is done already in FOLDER is not done
again, so that a study may be interrupted at any time and go on over several sittings; --arms and --budgets name what
this sitting trains, and the tables show all that there is (`distillation_report`). --cost trains nothing: it times a
step of each arm that has run, one arm after another, and in turns the ONNX files of arms whose mIoU is drawn over
latency; it wants a machine with nothing else to do.

A teacher is trained on the labels that its arms see, and dumped for all keyframes. An arm's number is that of its EMA
weights after the last step, on all validation keyframes: no arm picks its best epoch. What is compared has the same
steps, batches, augmentation and initial weights, and is paired by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, pairwise
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from deploy import in_turns
from distillation_page import page
from distillation_report import Results, Run, over_latency, planned, report, run_folder, tables
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from distill import ranks
from distill.checkpoint import Checkpoint, load_checkpoint
from distill.command import script
from distill.errors import InputError
from distill.files import durable
from distill.frame import Frame, stack
from distill.metrics import Confusion, RayIoU
from distill.networks.network import streamed
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset
from distill.store import TeacherStore
from student.evaluation.deployed import Deployed
from student.evaluation.scorecard import ScenePoses
from student.export.runtime import OnnxFile
from student.train import prepare
from student.training import Trainer

BIN = Path(sys.executable).parent
WARMUP, TIMED = 3, 10  # steps


class Study:
    """What is trained.

    Args:
        folder: of the study.
        plan: of the YAML file.
        extra: overrides for all runs.
    """

    def __init__(self, folder: Path, plan: DictConfig, extra: list[str]) -> None:
        self.folder, self.plan = folder, plan
        self.common = [*plan.common, *extra]
        self.config = self._composed([])
        self.grid, self.classes = instantiate(self.config.grid), instantiate(self.config.classes)
        self.index = open_dataroot(self.config.data)
        self.labels = open_labels(self.config.data, self.grid)
        self.keyframes = self.index.keyframes(self.config.data.val_split)
        self.poses = ScenePoses(self.index, self.grid)

    def _composed(self, given: list[str]) -> DictConfig:
        with initialize_config_module("conf", version_base="1.3"):
            return compose("train", [*self.common, *given])

    def runs(self, arms: Collection[str], budgets: Collection[str]) -> list[Run]:
        """What is not done of these arms and budgets: seed by seed, so that whoever looks early sees all arms."""
        chosen = [run for run in planned(self.plan) if run[0] in budgets and run[1] in arms]
        left = [run for run in chosen if not (run_folder(self.folder, *run) / "counts.npz").exists()]
        return sorted(left, key=lambda run: list(self.plan.seeds).index(run[2]))

    def teachers(self, runs: Collection[Run]) -> list[str]:
        """Those of some runs."""
        taught = (self.plan.arms[arm].teacher for _, arm, _ in runs)
        return list(dict.fromkeys(teacher for teacher in taught if teacher))

    def store(self, teacher: str) -> Path:
        """What a teacher said: its own, if the plan names one, or that of `make_teacher`."""
        given = self.plan.teachers[teacher].get("store")
        return self.folder / "teachers" / f"{teacher}.zarr" if given is None else Path(given).resolve()

    def make_teacher(self, teacher: str, environment: Mapping[str, str]) -> None:
        """Train a teacher, dump it and count what it says; nothing is trained if the plan names a store."""
        told, run = self.plan.teachers[teacher], self.folder / "teachers" / teacher
        counted = run / "counts.npz"
        if counted.exists() and self.store(teacher).exists():
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

    def given(self, budget: str, arm: str, seed: int) -> list[str]:
        """The overrides of a run beside those of all."""
        told = self.plan.arms[arm]
        stores = [f"teachers.stored.paths=[{self.store(told.teacher)}]"] if told.teacher else []
        return [*flat(self.plan.budgets[budget]), *stores, *flat(told.given), f"seed={seed}"]

    def run_arm(self, budget: str, arm: str, seed: int, environment: Mapping[str, str]) -> None:
        """Train an arm with a seed and count what it predicts."""
        run = run_folder(self.folder, budget, arm, seed)
        given = [*self.common, *self.given(budget, arm, seed), f"output={run}"]
        self._run("occ-train-student", given, environment, run)
        counting = [__file__, str(self.folder), "--study", str(self.folder / "plan.yaml"), "--count", str(run)]
        logged([sys.executable, *counting], environment, run)

    def _run(self, program: str, given: list[str], environment: Mapping[str, str], run: Path) -> None:
        """Once."""
        if not (run / f"{program}.done").exists():
            logged([str(BIN / program), *given], environment, run)
            (run / f"{program}.done").touch()

    def count(self, run: Path) -> None:
        """Count what the EMA weights of a run predict, keyframe by keyframe, into `<run>/counts.npz`."""
        checkpoint = load_checkpoint(str(run / "last.pt"), "ema")
        answer = streamed(checkpoint.network(), calls=1)
        frames = self._frames(checkpoint)

        @torch.inference_mode()
        def predict(position: int) -> np.ndarray:
            return answer(stack([frames[position]])).voxel_logits_BXYZC[0].argmax(-1).to(torch.uint8).numpy()

        self._save(run / "counts.npz", predict)

    def _frames(self, checkpoint: Checkpoint) -> FrameDataset:
        """The validation keyframes, as a network wants them."""
        inputs = checkpoint.config["student"]["inputs"]
        return FrameDataset(self.keyframes, labels=self.labels, augmentation=None, seed=0, depth_stride=None, **inputs)

    def _save(self, path: Path, predict: Callable[[int], np.ndarray]) -> None:
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

    def deployed(self, budget: str, arm: str) -> Callable[[], object]:
        """A call that answers one keyframe by the ONNX file of an arm's first seed, on one thread."""
        from student.export.onnx_file import write_onnx  # wants the extra `onnx`

        run = run_folder(self.folder, budget, arm, self.plan.seeds[0])
        checkpoint = load_checkpoint(str(run / "last.pt"), "ema")
        with initialize_config_module("conf", version_base="1.3"):
            write_onnx(checkpoint, compose("export").onnx, run / "last.onnx")
        file, frame = OnnxFile(run / "last.onnx"), stack([self._frames(checkpoint)[0]])
        feeds = Deployed(file).feeds(frame)
        return lambda: file.run(feeds)

    def cost(self, budget: str, arm: str) -> float:
        """Median seconds from the end of a training step to the end of the next, its data included."""
        with tempfile.TemporaryDirectory() as output:
            config = self._composed([*self.given(budget, arm, self.plan.seeds[0]), f"output={output}", "variant=''"])
            trainer = prepare(config, Path(output), ranks.device(config.device))
            trainer.network.train()
            ends = []
            for frame in islice(batches(trainer), WARMUP + TIMED):
                trainer._train_step(frame.to(trainer.device))
                ends.append(time.perf_counter())
            if trainer.board is not None:
                trainer.board.close()  # its thread writes into the folder
        return statistics.median(end - begin for begin, end in pairwise(ends[WARMUP - 1 :]))


def batches(trainer: Trainer) -> Iterator[Frame]:
    """Of one epoch after the other, without end."""
    for epoch in count():
        trainer.sampler.start_at(epoch, 0)
        yield from trainer.loader


def logged(command: list[str], environment: Mapping[str, str], run: Path) -> None:
    """Run a program; what it says is in `<run>/log.txt`.

    Raises:
        InputError: it failed, with its last line.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "log.txt", "ab") as log:
        ended = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if ended.returncode:
        said = (run / "log.txt").read_text(errors="replace").splitlines()[-1:]
        raise InputError(f"{Path(command[0]).name} failed: {' '.join(said)} (all of it: {run / 'log.txt'})")


def flat(given: Any) -> list[str]:
    """Overrides, of which some may come as lists of their own (`${name}` in a plan)."""
    return [one for each in given for one in ([each] if isinstance(each, str) else flat(each))]


def check(plan: DictConfig, arms: Sequence[str], budgets: Sequence[str]) -> None:
    """Look up every name that a plan and a command line give.

    Raises:
        InputError: there is none of that name.
    """
    named = [("arm", arm, "--arms") for arm in arms] + [("budget", budget, "--budgets") for budget in budgets]
    for arm, told in plan.arms.items():
        named += [("teacher", told.teacher, f"arms.{arm}")]
        named += [("budget", budget, f"arms.{arm}") for budget in told.get("budgets", [])]
        named += [("seed", seed, f"arms.{arm}") for seed in told.get("seeds", [])]
    for name, told in plan.comparisons.items():
        compared = [told.control, told.ceiling, *told.arms, *told.get("kinds", {}).values()]
        named += [("arm", arm, f"comparisons.{name}") for arm in compared]
        named += [("teacher", told.teacher, f"comparisons.{name}")]
    for kind, name, place in named:
        if name is not None and name not in plan[f"{kind}s"]:
            raise InputError(
                f"{place}: there is no {kind} {name}: the plan has {', '.join(map(str, plan[f'{kind}s'])) or 'none'}"
            )


def train(study: Study, arms: Collection[str], budgets: Collection[str], jobs: int, threads: int) -> None:
    """Run what is not done yet; after a failure what runs already comes to its end, and nothing more begins."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    failed = Event()

    def unless_failed(work: Callable[..., None], *given: Any) -> None:
        if failed.is_set():
            return
        try:
            work(*given, environment)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        runs = study.runs(arms, budgets)
        list(pool.map(lambda teacher: unless_failed(study.make_teacher, teacher), study.teachers(runs)))
        done = pool.map(lambda run: unless_failed(study.run_arm, *run), runs)
        for _ in tqdm(done, total=len(runs), desc="study", unit="run"):
            pass


def time_arms(study: Study, results: Results) -> None:
    """Write `<folder>/cost.json`: arm -> seconds a step, of all arms that have run; and `latency.json`: arm ->
    milliseconds of a keyframe, of those that are drawn over it."""
    ran = {arm: budget for budget, arm, _ in reversed(results.done)}
    seconds = {arm: study.cost(budget, arm) for arm, budget in tqdm(ran.items(), desc="cost", unit="arm")}
    drawn = {arm: study.deployed(ran[arm], arm) for arm in over_latency(study.plan) if arm in ran}
    latency = {arm: statistics.median(times) for arm, times in in_turns(drawn, TIMED).items()}
    for name, told in (("cost", seconds), ("latency", latency)):
        with durable(study.folder / f"{name}.json") as file:
            file.write(json.dumps(told, indent=1).encode())


def write(results: Results, threads: int) -> None:
    """Compare, and say so on the terminal and in the folder: `study.json`, a text in Markdown, and `study.html`."""
    told = report(results, threads)
    texts = {
        ".json": json.dumps(told, indent=1),
        ".md": tables(told, markdown=True),
        ".html": page(told),
    }
    for suffix, text in texts.items():
        with durable(results.folder / f"study{suffix}") as file:
            file.write(text.encode())
    print(tables(told, markdown=False))
    print(f"page: {results.folder / 'study.html'}")


@script
def main() -> None:
    """Run what is not done yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--arms", nargs="*", help="which to train now (all)")
    parser.add_argument("--budgets", nargs="*", help="which to train now (all)")
    parser.add_argument("--cost", action="store_true", help="train nothing, time each arm that has run")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()  # overrides may stand behind options
    plan = OmegaConf.load(options.study)
    assert isinstance(plan, DictConfig)
    # an empty list is one: to compare what there is
    arms = list(plan.arms) if options.arms is None else options.arms
    budgets = list(plan.budgets) if options.budgets is None else options.budgets
    check(plan, arms, budgets)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(folder, plan, options.overrides)
    if options.count is not None:
        study.count(options.count)
        return
    OmegaConf.save(OmegaConf.merge(plan, {"common": study.common}), folder / "plan.yaml")
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    if options.cost:
        time_arms(study, Results(folder, plan, study.classes))
    else:
        train(study, arms, budgets, options.jobs, threads)
    write(Results(folder, plan, study.classes), threads)


if __name__ == "__main__":
    main()
