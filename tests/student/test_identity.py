"""A run is what it learned from and how, wherever its files lie."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D
from distill.losses.objective import Objective
from distill.signals import described
from distill.signals.bev import Bev
from distill.signals.voxels import Voxels
from distill.store import StoreIdentity
from student.identity import check_same_run, run_facts

NAMES = OCC3D_CLASSES.names
SIGNALS = described([Voxels(OCC3D, NAMES), Bev(OCC3D, NAMES)])
TEACHER = StoreIdentity("fusion", "ab" * 32, {"weights": "ema"}, OCC3D, NAMES, SIGNALS)
LAST = Path("run/last.pt")


def facts_of(*overrides: str, teacher: StoreIdentity = TEACHER, **data: str) -> dict[str, Any]:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", ["experiment=demo", "trainer.init=null", *overrides])
    facts = run_facts(config, Objective({}), [], {"train": "1", "val": "2"} | data)
    return facts | {"teachers": {"stored": {"weight": 1.0, "stores": [teacher.to_dict()], "terms": ["kd_voxel"]}}}


def check(facts: dict[str, Any], saved: dict[str, Any] | None = None, device: str = "cpu") -> None:
    state = copy.deepcopy(saved or facts_of()) | {"world_size": 1, "device": "cpu"}
    check_same_run(state, facts, LAST, torch.device(device))


@pytest.mark.parametrize(
    "moved",
    [
        "data.root=/elsewhere",
        "data.cache_dir=/other/home/.cache",
        "device=cuda:1",
        "teachers.stored.paths=[/elsewhere/s.zarr]",
        "teachers.stored.folder=/elsewhere",
        "output=/elsewhere/run",
        "trainer.workers=7",
        "data.world.seed=3",
        "trainer.gradient_norms_every=7",
    ],
)
def test_where_things_lie_does_not_matter(moved):
    check(facts_of(moved))


@pytest.mark.parametrize(
    "changed",
    [
        "trainer.learning_rate=1",
        "seed=1",
        "kd=voxel",
        "student.inputs.image_size=[64,160]",
        "objective.terms.ce.weight=2",
        "teachers.stored.signals=[gaussians]",
        "teachers.stored.weight=2",
    ],
)
def test_what_numbers_depend_on_is_named(changed):
    with pytest.raises(InputError, match=changed.partition("=")[0]):
        check(facts_of(changed))


def test_runs_of_earlier_versions_did_not_warm_their_teachers_up():
    earlier = facts_of()
    del earlier["config"]["kd"]["warmup_steps"]
    check(facts_of(), earlier)
    with pytest.raises(InputError, match=r"kd\.warmup_steps=0 became 5"):
        check(facts_of("kd.warmup_steps=5"), earlier)


def test_runs_of_earlier_versions_turned_no_images():
    earlier = facts_of()
    del earlier["config"]["trainer"]["augmentation"]["rotation"]
    check(facts_of(), earlier)
    with pytest.raises(InputError, match=r"trainer\.augmentation\.rotation=0\.0 became 5\.4"):
        check(facts_of("trainer.augmentation.rotation=5.4"), earlier)


def test_runs_of_earlier_versions_called_a_power_by_its_name():
    earlier = facts_of("kd=balanced", "kd.balance=0.5")
    for node in (earlier["config"]["kd"], earlier["config"]["kd"]["terms"]["kd_voxel"]):
        node["balance"] = "sqrt"
    check(facts_of("kd=balanced", "kd.balance=0.5"), earlier)
    with pytest.raises(InputError, match=r"kd\.balance=0\.5 became 0\.4"):
        check(facts_of("kd=balanced", "kd.balance=0.4"), earlier)


def test_runs_of_earlier_versions_knew_neither_confidence_nor_terms_that_are_left_out():
    earlier = facts_of("kd.unlabelled=all")
    kd, terms = (earlier["config"][part] for part in ("kd", "objective"))
    for node in (kd, *kd["terms"].values()):
        node.pop("confidence", None)  # not every term has one
        del node["unlabelled"]
    for name in ("semantic_scal", "geometric_scal"):
        del terms["terms"][name]
    check(facts_of("kd.unlabelled=all"), earlier)
    for changed, said in (
        ("kd.unlabelled=seen", "unlabelled=all became seen"),
        ("kd.confidence=entropy", "kd.confidence"),
        ("objective.terms.semantic_scal.weight=1", "semantic_scal"),
    ):
        with pytest.raises(InputError, match=said):
            check(facts_of("kd.unlabelled=all", changed), earlier)


@pytest.mark.parametrize(
    "other",
    [
        replace(TEACHER, teacher="mine"),
        replace(TEACHER, checkpoint_sha256="cd" * 32),
        replace(TEACHER, config={"weights": "raw"}),
        replace(TEACHER, signals=described([Voxels(OCC3D, NAMES), Bev(OCC3D, NAMES, rule="maximum")])),
        replace(TEACHER, signals=described([Voxels(OCC3D, NAMES)])),
    ],
)
def test_another_teacher_in_the_same_place_is_refused(other):
    with pytest.raises(InputError, match="taught by other stores"):
        check(facts_of(teacher=other))


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_keyframes_under_the_same_path_are_refused(split):
    with pytest.raises(InputError, match=f"other {split} keyframes"):
        check(facts_of(**{split: "3"}))


def test_initial_weights_are_known_by_their_content(tmp_path):
    files = [tmp_path / name for name in ("a.pt", "b.pt")]
    for file in files:
        file.write_bytes(b"weights")
    one, other = (f"trainer.init={file}" for file in files)
    begun = facts_of(one)
    check(facts_of(other), begun)
    files[1].write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"trainer\.init names another file"):
        check(facts_of(other), begun)
    files[0].unlink()  # what they held is in the checkpoint
    check(facts_of(one), begun)
    with pytest.raises(InputError, match=r"trainer\.init"):
        check(facts_of(), begun)


def test_another_kind_of_device_is_refused():
    with pytest.raises(InputError, match="kind of device=cpu became cuda"):
        check(facts_of(), device="cuda")
