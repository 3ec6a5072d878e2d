"""Teachers that lie in no store: a training with them, and what is left of it."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file
from workshop import SMALL_STUDENT, Workshop

from distill.checkpoint import export, load_checkpoint

WORLD = ("data.world.train_scenes=2", "data.world.val_scenes=1")
STUDENT = tuple(override for override in SMALL_STUDENT if not override.startswith("teachers."))
HALF = "trainer.withheld={share: 0.5, seed: 0}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("teachers"))


def test_the_students_average_teaches_where_labels_are_withheld_and_resumes_bit_for_bit(shop):
    """kill -9 after the first checkpoint, and again; against one go. No store is there."""
    run = (*WORLD, *STUDENT, "trainer.epochs=1", "teachers=ema", "kd=balanced", "kd.warmup_steps=3", HALF)
    killed = shop.folder / "killed/last.pt"
    command = shop.command("occ-train-student", *run, "output=killed", "trainer.checkpoint_every=1")
    process = subprocess.Popen(command, cwd=shop.folder)
    while not killed.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(killed, weights_only=True)["step"] < 4
    assert "going on from" in shop.ok("occ-train-student", *run, "output=killed")
    printed = shop.ok("occ-train-student", *run, "output=straight")
    assert "2 (EMA of the student with LiDAR depth)" in printed
    assert "had no teacher" not in printed  # the labelled half is none of its business
    resumed, straight = (
        torch.load(shop.folder / name / "last.pt", weights_only=True) for name in ("killed", "straight")
    )
    assert resumed["history"] == straight["history"]
    assert straight["history"][-1]["train_kd_voxel"] > 0
    for part in ("network", "ema", "providers"):
        assert resumed[part].keys() == straight[part].keys()
        assert all(torch.equal(value, straight[part][name]) for name, value in resumed[part].items())
    assert {name.removeprefix("ema.network.") for name in straight["providers"]} == set(straight["network"])
    line = shop.refused("occ-train-student", *run, "output=killed", "teachers.ema.momentum=0.5")
    assert "teachers.ema.momentum=0.999 became 0.5" in line
    line = shop.refused("occ-train-student", *WORLD, *STUDENT, "teachers=ema", "kd=balanced", "output=all")
    assert "all 4 training keyframes have some: set teachers.ema.frames=all" in line
    line = shop.refused(
        "occ-train-student",
        *run,
        "teachers.ema.frames=all",
        "kd=pseudo",
        "kd.threshold={precision: 0.8}",
        "output=early",
    )
    assert "kd.threshold.precision is measured before the first step" in line


def test_a_branch_with_lidar_teaches_and_is_left_out_of_what_is_kept(shop):
    run = (*WORLD, *STUDENT, "trainer.epochs=1", "teachers=fusion_branch", "kd=balanced", HALF)
    printed = shop.ok("occ-train-student", *run, "output=branch", "trainer.gradient_norms_every=1")
    assert "4 (a branch of the student with LiDAR)" in printed
    state = torch.load(shop.folder / "branch/last.pt", weights_only=True)
    assert all(state["history"][-1][f"train_{name}"] > 0 for name in ("fused", "kd_voxel", "kd_bev"))
    assert state["teachers"]["fusion_branch"]["terms"] == ["fused", "kd_voxel", "kd_bev"]
    assert state["providers"]
    checkpoint = load_checkpoint(str(shop.folder / "branch/last.pt"), "ema")
    checkpoint.network()  # of the student's own configuration, strictly
    export(checkpoint, shop.folder / "out.safetensors")
    assert load_file(shop.folder / "out.safetensors").keys() == state["network"].keys()
    assert not any("branch" in name for name in state["network"])
    assert len(state["optimizer"]["param_groups"][0]["params"]) > len(
        [name for name, _ in checkpoint.network().named_parameters()]
    )
