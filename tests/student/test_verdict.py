"""What distilling came to: who is compared, whether they were trained alike, and what is said of it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from distill.checkpoint import Checkpoint
from distill.classes import OCC3D_CLASSES
from distill.grids import OCC3D
from distill.store import StoreIdentity
from student.evaluation.control import Arms, find_arms, unlike
from student.evaluation.sources import CheckpointSource, StoreSource
from student.evaluation.verdict import measured, shown, verdict, words

C, FREE, CAR, BUS, TRUCK = len(OCC3D_CLASSES), 17, 4, 3, 10
IDENTITY = StoreIdentity("fusion", "ab" * 32, {}, OCC3D, OCC3D_CLASSES.names, {})
TAUGHT = {"stored": {"stores": [IDENTITY.to_dict()]}}


def checkpoint(*overrides: str, taught: bool = False, sha256: str = "", **facts) -> Checkpoint:
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    facts = {"step": 240, "data": {"train": "d" * 64}, "files": {}, "teachers": TAUGHT if taught else {}, **facts}
    return Checkpoint(Path("best.pt"), sha256, config, "ema", {}, facts)


class Network(CheckpointSource):
    """A source that runs nothing."""

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name, self.checkpoint = name, checkpoint


class Store(StoreSource):
    """A source that reads nothing."""

    stores = (SimpleNamespace(identity=IDENTITY),)

    def __init__(self, name: str) -> None:
        self.name = name


STUDENT, CONTROL = Network("student", checkpoint(taught=True)), Network("control", checkpoint("kd=none"))
TEACHER = Store("teacher")
ARMS = Arms(STUDENT, CONTROL, TEACHER)


# --- who is compared


def test_a_student_is_compared_with_the_first_that_nobody_taught():
    other = Network("other", checkpoint("kd=none"))
    assert find_arms([STUDENT, TEACHER, CONTROL, other]) == ARMS
    assert find_arms([CONTROL, STUDENT]) == Arms(STUDENT, CONTROL, None)
    assert find_arms([STUDENT, TEACHER]) is find_arms([CONTROL, other]) is find_arms([TEACHER]) is None


def test_the_network_that_taught_is_no_control():
    """It had no teacher either."""
    network = Network("fusion", checkpoint("kd=none", sha256=IDENTITY.checkpoint_sha256))
    assert find_arms([STUDENT, network]) is None
    assert find_arms([STUDENT, network, CONTROL]) == Arms(STUDENT, CONTROL, network)


# --- trained alike


@pytest.mark.parametrize(
    "overrides",
    [["data.root=/elsewhere"], ["output=there", "trainer.workers=9"], ["trainer.max_val_samples=3"], ["kd=pseudo"]],
)
def test_where_things_lie_and_the_teacher_itself_are_no_difference(overrides):
    assert unlike(checkpoint(*overrides), checkpoint("kd=none")) == []


def test_what_trains_the_teacher_is_no_difference():
    taught = {"fusion_branch": {"weight": 1.0, "terms": ["fused", "kd_voxel", "kd_bev"]}}
    branch = checkpoint("teachers=fusion_branch", teachers=taught)
    assert unlike(branch, checkpoint("kd=none")) == []
    assert unlike(branch, checkpoint("kd=none", "seed=1")) == ["seed 0 vs 1"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=1"], "seed 0 vs 1"),
        (["trainer.init=mine.pt"], "trainer.init null vs mine.pt"),
        (["trainer.augmentation.image_flip=0"], "trainer.augmentation.image_flip 0.5 vs 0"),
        (["trainer.withheld={share: 0.75, seed: 0}"], "trainer.withheld null vs {share: 0.75, seed: 0}"),
        (["objective.terms.ce.balance=0.5"], "objective.terms.ce.balance log vs 0.5"),
    ],
)
def test_other_differences_are_named(overrides, said):
    assert unlike(checkpoint(), checkpoint("kd=none", *overrides)) == [said]


def test_an_option_that_an_earlier_version_lacked_is_what_it_did():
    earlier = checkpoint("kd=none")
    del earlier.config["trainer"]["augmentation"]["rotation"]
    assert unlike(checkpoint(), earlier) == []
    assert unlike(checkpoint("trainer.augmentation.rotation=5.4"), earlier) == [
        "trainer.augmentation.rotation 5.4 vs 0.0"
    ]


def test_another_budget_is_told_in_steps():
    lines = unlike(checkpoint(), checkpoint("trainer.epochs=48", "trainer.batch_size=8", step=960))
    assert lines == ["steps 240 vs 960", "trainer.epochs 24 vs 48", "trainer.batch_size 16 vs 8"]
    others = unlike(checkpoint(), checkpoint(data={"train": "e" * 64}))
    assert others == [f"data {'d' * 12} vs {'e' * 12}"]


def test_files_are_compared_by_what_they_hold():
    own, same, other = (
        checkpoint(f"trainer.init={name}.pt", files={"trainer.init": digest * 64})
        for name, digest in (("a", "1"), ("b", "1"), ("a", "2"))
    )
    assert unlike(own, same) == []
    assert unlike(own, other) == [f"trainer.init {'1' * 12} vs {'2' * 12}"]


# --- the verdict


def counts(keyframes: int, **right: float) -> list[torch.Tensor]:
    """Keyframes with cars, buses and trucks, 1000 voxels and rays each, of which so many percent are found."""
    confusion_KCC = torch.zeros(keyframes, C, C, dtype=torch.int32)
    jitter_K = torch.from_numpy(np.random.default_rng(0).integers(-20, 21, keyframes)).int()
    for label, name in ((CAR, "car"), (BUS, "bus"), (TRUCK, "truck")):
        found_K = (10 * right[name] + jitter_K).int() if right[name] else torch.zeros(keyframes).int()
        confusion_KCC[:, label, label], confusion_KCC[:, label, FREE] = found_K, 1000 - found_K
    return [confusion_KCC, confusion_KCC, confusion_KCC.diagonal(dim1=1, dim2=2).unsqueeze(1).repeat(1, 3, 1)]


CONTROL_COUNTS = {"car": 50, "bus": 50, "truck": 50}
NO_TEACHER = {"mIoU": None, "geometric IoU": None, "RayIoU": None}


def found(keyframes=18, arms=ARMS, teacher=NO_TEACHER, **right):
    sides = {
        "student": counts(keyframes, **{**CONTROL_COUNTS, **right}),
        "control": counts(keyframes, **CONTROL_COUNTS),
    }
    return json.loads(json.dumps(verdict(arms, sides, teacher, OCC3D_CLASSES), allow_nan=False))


def said(*args, **kwargs):
    text = words(found(*args, **kwargs), "{:+.2f}".format)
    return text["gains"], "\n".join(text["remarks"])


def test_a_gain_its_interval_and_its_share_of_the_gap():
    """Cars gain 30 points, so that the mean of three classes gains 10; the teacher is 40 above the control."""
    of = found(car=80, teacher={"mIoU": 90.0, "geometric IoU": 40.0, "RayIoU": None})
    gain = of["gains"]["mIoU"]
    assert gain["gain"] == pytest.approx(10) and gain["interval"] == pytest.approx([10, 10], abs=1e-6)
    assert gain["share of the gap"] == pytest.approx(0.25, abs=0.01)
    assert of["gains"]["geometric IoU"]["gain"] == of["gains"]["RayIoU"]["gain"] == pytest.approx(10)
    assert of["gains"]["geometric IoU"]["share of the gap"] is of["gains"]["RayIoU"]["share of the gap"] is None
    assert of["worse"] == of["unlearnt"] == []
    (miou, geometric, _), remarks = (words(of, "{:+.2f}".format)[key] for key in ("gains", "remarks"))
    assert miou == "Distilling gains +10.00 mIoU over the control [+10.00, +10.00], 25 % of the gap to the teacher"
    assert geometric.endswith("over the control [+10.00, +10.00]")
    assert remarks[0] == "no gap: teacher is not better than the control in geometric IoU, RayIoU"
    assert "ONE seed per arm" in remarks[-1] and "benchmarks/distillation.py" in remarks[-1]


def test_what_got_worse_and_what_is_not_known_any_more():
    of = found(car=80, bus=40, truck=0)
    assert [row["class"] for row in of["worse"]] == ["truck", "bus"]
    assert of["worse"][1]["gain"] == pytest.approx(-10) and shown(of["worse"][1])
    assert of["worse"][1]["keyframes"] == 18
    assert of["unlearnt"] == ["truck"]
    (miou, *_), remarks = said(car=80, bus=40, truck=0)
    assert miou.startswith("Distilling loses -10.") and "against the control [-10." in miou and "gap" not in miou
    assert "unlearnt: truck (" in remarks


def test_an_interval_with_0_is_no_difference():
    (miou, *_), _ = said()
    assert miou == "mIoU: no difference that 18 keyframes can show, +0.00 [+0.00, +0.00]"


def test_few_keyframes_show_nothing_however_large_the_gain():
    (miou, *_), remarks = said(keyframes=5, car=80)
    assert miou == "mIoU: no difference that 5 keyframes can show, +10.00"
    assert "no intervals: 5 keyframes are too few" in remarks


def test_a_class_that_few_keyframes_have_shows_nothing():
    control, student = counts(18, **CONTROL_COUNTS), counts(18, **CONTROL_COUNTS)
    for side, right in ((control, 500), (student, 100)):
        side[0][:, BUS] = 0
        side[0][:5, BUS, BUS], side[0][:5, BUS, FREE] = right, 1000 - right
    of = verdict(ARMS, {"student": student, "control": control}, NO_TEACHER, OCC3D_CLASSES)
    (bus,) = of["worse"]
    assert bus["gain"] == pytest.approx(-40) and bus["keyframes"] == 5
    assert not shown(bus) and measured(bus, "{:+.2f}".format) == "-40.00"


def test_what_was_not_trained_alike_is_not_called_distilling():
    other = Network("control", checkpoint("kd=none", "trainer.epochs=96", step=960))
    (miou, *_), remarks = said(car=80, arms=Arms(STUDENT, other, None))
    assert miou.startswith("The student gains +10.00 mIoU over the control")
    assert remarks.startswith("not trained alike: steps 240 vs 960, trainer.epochs 24 vs 96; what lies between")
    longer = deepcopy(CONTROL.checkpoint)
    longer.facts["step"] = 960
    (miou, *_), remarks = said(car=80, arms=Arms(STUDENT, Network("control", longer), None))
    assert miou.startswith("Distilling gains") and remarks.startswith("kept at step 240 vs 960 of runs of one length")
