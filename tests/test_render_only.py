"""Training along rays, without a voxel label."""

from __future__ import annotations

import json
import shutil

from workshop import SMALL_STUDENT

ALONG_RAYS = (*SMALL_STUDENT, "kd=none", "objective=render_only", "objective.rays.count=500")


def test_a_student_learns_without_any_label_of_training_keyframes(copy):
    root = copy.folder / "data/demo"
    for scene in (root / "gts").glob("demo-train-*"):
        shutil.rmtree(scene)
    copy.ok("occ-train-student", *ALONG_RAYS, "trainer.augmentation.bev_flip=1.0", "output=runs/rays")
    lines = [json.loads(line) for line in (copy.folder / "runs/rays/metrics.jsonl").read_text().splitlines()]
    assert {"train_ray_depth", "train_ray_semantics", "train_ray_entropy", "train_ray_distortion"} <= lines[0].keys()
    assert not {"train_ce", "train_lovasz"} & lines[0].keys()
    assert lines[1]["train_ray_semantics"] < lines[0]["train_ray_semantics"]

    (root / "v1.0-demo/lidarseg.json").unlink()
    line = copy.refused("occ-train-student", *ALONG_RAYS, "output=runs/none")
    assert "lidarseg.json is missing" in line and "objective=default" in line
