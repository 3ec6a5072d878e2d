"""Gaussians from a teacher's dump to a student's report, as a user runs the programs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from workshop import SMALL_STUDENT, Workshop

from distill.bev import bev_log_probs
from distill.nuscenes.index import load_index
from distill.signals.gaussians import MAX_MEAN_KL, render
from distill.signals.voxels import MAX_KL
from distill.store import TeacherStore

TEACHER = (
    "teacher=callable",
    "teacher.name=road",
    "teacher._target_=gaussian_teacher.RoadTeacher",
    "+teacher.grid=${grid}",
    "+teacher.det=stable",
    "gate.min_miou=0",
)


@pytest.fixture(scope="module")
def dumped(workshop: Workshop) -> TeacherStore:
    """Voxels and Gaussians of two keyframes."""
    printed = workshop.ok(
        "occ-dump",
        *TEACHER,
        "dump.signals=[voxels,bev,gaussians]",
        "dump.max_samples=2",
        "store.path=both.zarr",
        "store.encoding=fine",
    )
    assert "dumped 2 keyframes" in printed
    return TeacherStore(workshop.folder / "both.zarr")


def test_voxels_rendered_from_the_store_are_those_in_it(workshop, dumped):
    root = workshop.folder / "data/demo"
    keyframes = load_index(root, "v1.0-demo", workshop.folder / "cache").keyframes("train")
    poses = {keyframe.token: torch.from_numpy(keyframe.lidar2ego).float() for keyframe in keyframes}
    for token in dumped.present:
        told = dumped.told(token, ["voxels", "bev", "gaussians"], coverage=True).signals
        gaussians, voxels = told["gaussians"].gaussians, told["voxels"]
        rendered_VC, covered_V = render(gaussians, dumped.grid, poses[token], torch.arange(640_000))
        stored_VC = torch.from_numpy(voxels.table[voxels.codes]).view(-1, 18).log_softmax(-1)
        assert np.array_equal(covered_V.view(dumped.grid.shape), dumped.coverage(token))
        assert 0 < (~covered_V).float().mean() < 0.2
        kl_V = (stored_VC.exp() * (stored_VC - rendered_VC)).sum(1)
        assert kl_V[covered_V].mean() < MAX_KL[1] + MAX_MEAN_KL
        torch.testing.assert_close(stored_VC[~covered_V].exp(), torch.full_like(stored_VC[~covered_V], 1 / 18))

        semantics_V = torch.from_numpy(dumped.semantics(token)).flatten()
        assert torch.equal(semantics_V == 255, ~covered_V)
        assert {11, 16, 17} <= set(semantics_V.unique().tolist())
        bev_XYC = bev_log_probs(rendered_VC.view(*dumped.grid.shape, 18), 17, covered_V.view(dumped.grid.shape)).exp()
        assert np.abs(bev_XYC.numpy() - told["bev"].probs).mean() < 1e-3


def test_a_dump_is_not_resumed_with_other_contents(workshop, dumped):
    line = workshop.refused("occ-dump", *TEACHER, "dump.signals=[gaussians]", "store.path=both.zarr")
    assert "dump.signals is 'bev, gaussians, voxels' there, 'gaussians' here" in line


def test_a_signal_of_a_users_own_is_dumped_and_dumped_again(workshop):
    """Of a module that no file of the project knows."""
    own = ("dump.signals=[voxels,heights.Heights]", "store.path=hills.zarr")
    line = workshop.refused("occ-dump", *TEACHER, *own, "dump.max_samples=1")
    assert "teacher road knows no heights" in line
    hills = (*TEACHER, "teacher._target_=heights.HillTeacher", *own)
    workshop.ok("occ-dump", *hills, "dump.max_samples=1")
    assert "dumped 1 keyframes" in workshop.ok("occ-dump", *hills, "dump.max_samples=2", "dump.verify=true")
    store = TeacherStore(workshop.folder / "hills.zarr")
    for token in store.present:
        store.verify(token)
        heights_XY = store.told(token, ["heights"], coverage=False).signals["heights"].heights
        occupied_XYZ = store.semantics(token) < 17
        top_Z = np.arange(1, 17) * 0.4
        expected_XY = np.where(occupied_XYZ, top_Z, -1).max(-1)
        np.testing.assert_allclose(np.nan_to_num(heights_XY, nan=-1), expected_XY, atol=0.0051)
        assert 0.05 < occupied_XYZ.any(-1).mean() < 0.95


def test_a_student_learns_from_gaussians_alone_on_another_grid(workshop):
    """Dumped on Occ3D, learnt from and compared with on SurroundOcc."""
    workshop.ok("occ-dump", *TEACHER, "dump.signals=[gaussians]", "dump.max_samples=3", "store.path=only.zarr")
    kd = ("trainer.epochs=1", "teachers.stored.paths=[only.zarr]")
    workshop.ok("occ-train-student", *SMALL_STUDENT, *kd, "grid=surroundocc", "output=runs/gaussians")
    (entry,) = map(json.loads, (workshop.folder / "runs/gaussians/metrics.jsonl").read_text().splitlines())
    assert entry["train_kd_voxel"] > 0
    assert entry["train_kd_bev"] > 0
    assert entry["frames_without_teacher"] == 0
    quick = ("pictures=[]", "cost.warmup=0", "cost.runs=1", "max_samples=1")
    workshop.ok("occ-eval", "checkpoint=runs/gaussians/best.pt", *quick)
    metrics = json.loads((workshop.folder / "runs/gaussians/eval-val-max_samples_1/metrics.json").read_text())
    assert metrics["scored"]["keyframes"] == 1
    # it knows where the road is
    iou = metrics["sources"]["teacher"]["per_class"]["SurroundOcc-16 IoU"]
    assert iou["driveable_surface"] > 5
    assert iou["car"] in (0, None)
