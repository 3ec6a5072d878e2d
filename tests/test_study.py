"""The study of benchmarks/distillation.py: pairs, intervals, and what is done already."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from workshop import ROOT, SMALL_STUDENT, STORE, Workshop

from distill.classes import OCC3D_CLASSES

SCRIPT = ROOT / "benchmarks/distillation.py"
specification = importlib.util.spec_from_file_location("distillation_study", SCRIPT)
assert specification is not None and specification.loader is not None
distillation = importlib.util.module_from_spec(specification)
sys.modules[specification.name] = distillation  # dataclasses look their module up
specification.loader.exec_module(distillation)
C = len(OCC3D_CLASSES)


def counts(right: float, keyframes: int = 5, seed: int = 0) -> distillation.Counts:
    """Keyframes of which a share of the voxels, and of the rays, is right; the rest is called free."""
    random = np.random.default_rng(seed)
    labels_KC = random.integers(200, 400, (keyframes, C))
    right_KC = (labels_KC * right).astype(np.int64)
    confusion_KCC = np.zeros((keyframes, C, C), np.int64)
    confusion_KCC[:, range(C), range(C)] = right_KC
    confusion_KCC[:, range(C), OCC3D_CLASSES.free] += labels_KC - right_KC
    return distillation.Counts(confusion_KCC, confusion_KCC, np.repeat(right_KC[:, None], 3, 1))


def test_metrics_are_those_of_the_counts():
    miou, geometric, rays = counts(0.5).metrics(OCC3D_CLASSES)
    assert miou == pytest.approx(50, abs=0.5)
    assert geometric == pytest.approx(50, abs=0.5)
    assert rays == pytest.approx(50, abs=0.5)


def test_a_study_goes_on_where_it_stopped(workshop: Workshop, tmp_path: Path):
    """Two arms of one seed; the second call trains nothing, and the numbers are those of occ-eval."""
    world = [f"data.world.{key}" for key in ("train_scenes=1", "val_scenes=2", "keyframes_per_scene=2")]
    common = [*world, "data.world.image_size=[320,180]", "data.cache_dir=cache", *SMALL_STUDENT]
    plan = {
        "seeds": [0],
        "common": common,
        "budgets": {"short": ["trainer.epochs=1"]},
        "teachers": {"shipped": {"store": STORE}},
        "arms": {
            "labels": {"teacher": None, "given": ["kd=none"]},
            "voxel": {"teacher": "shipped", "given": ["kd=voxel"]},
        },
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))  # JSON is YAML
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--study", str(tmp_path / "plan.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        ended = subprocess.run(
            command, cwd=workshop.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
    assert len((tmp_path / "out/short/labels-seed0/log.txt").read_text().split("best val mIoU")) == 2
    run = tmp_path / "out/short/voxel-seed0"
    counted = distillation.read_counts(run / "counts.npz").metrics(OCC3D_CLASSES)
    quick = ("pictures=[]", "cost.runs=1", "cost.warmup=0", f"output={tmp_path / 'eval'}")
    workshop.ok("occ-eval", f"checkpoint={run / 'last.pt'}", *quick)
    scored = json.loads((tmp_path / "eval/metrics.json").read_text())["sources"]["student"]["metrics"]
    for name, value in zip(("Occ3D-17 mIoU", "Occ3D-17 geometric IoU", "RayIoU"), counted, strict=True):
        assert value == pytest.approx(scored[name])
