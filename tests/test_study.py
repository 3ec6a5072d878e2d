"""The study of benchmarks/distillation.py: pairs, intervals, shares of a gap, and what is done already."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as some
from omegaconf import OmegaConf
from workshop import ROOT, SMALL_STUDENT, STORE, Workshop

from conf.schema import checked
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError

sys.path.append(str(ROOT / "benchmarks"))
study, results_of, page_of = map(importlib.import_module, ("distillation", "distillation_report", "distillation_page"))
C, SEEDS = len(OCC3D_CLASSES), 3


def plan(arms: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Control, ceiling, and whatever else is compared."""
    told = {"title": "a study", "control": "control", "ceiling": None, "teacher": None, "arms": list(arms)}
    return {
        "seeds": list(range(SEEDS)),
        "budgets": {"short": []},
        "teachers": {},
        "arms": {arm: {"teacher": None, "given": []} for arm in arms},
        "comparisons": {"all": {**told, **more}},
    }


def write_counts(folder: Path, right: float, keyframes: int, seed: int, lost: tuple[int, ...] = ()) -> None:
    """Keyframes of which a share of the voxels, and of the rays, is right, none of lost classes; the rest is free."""
    random = np.random.default_rng(seed)
    labels_KC = np.random.default_rng(0).integers(200, 4000, (keyframes, C))
    share_KC = np.clip(random.normal(right, 0.03, (keyframes, C)), 0, 1)
    share_KC[:, list(lost)] = 0
    right_KC = (labels_KC * share_KC).astype(np.int64)
    confusion_KCC = np.zeros((keyframes, C, C), np.int64)
    confusion_KCC[:, range(C), range(C)] = right_KC
    confusion_KCC[:, range(C), OCC3D_CLASSES.free] += labels_KC - right_KC
    folder.mkdir(parents=True)
    hits_KDC = np.repeat(right_KC[:, None], 3, 1)
    np.savez(folder / "counts.npz", confusion=confusion_KCC, rays=confusion_KCC, hits=hits_KDC)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 240, "val_miou": 100 * right}) + "\n")


def told_of(folder: Path, arms: Mapping[str, float], keyframes: int = 20, seeds: int = SEEDS, **more: Any) -> Any:
    """The report of made-up runs; `lost` are classes of which arm "lossy" has nothing right."""
    lost = more.pop("lost", ())
    for place, (arm, right) in enumerate(arms.items()):
        for seed in range(seeds):
            run = results_of.run_folder(folder, "short", arm, seed)
            write_counts(run, right, keyframes, 100 * place + seed, lost if arm == "lossy" else ())
    made = OmegaConf.create(plan(arms, **more))
    return results_of.report(results_of.Results(folder, made, OCC3D_CLASSES), threads=1)


def entries(told: dict[str, Any]) -> dict[str, Any]:
    return told["comparisons"]["all"]["budgets"]["short"]["arms"]


def test_the_same_counts_gain_nothing_in_any_resample(tmp_path: Path):
    told = told_of(tmp_path, {"control": 0.5})
    same = entries(told)["control"]
    assert set(same["gain"].values()) == {0.0}
    assert all(ends == [0.0, 0.0] for ends in same["interval"].values())


def test_intervals_hold_the_gain_and_shrink_with_keyframes(tmp_path: Path):
    few, many = (
        entries(told_of(tmp_path / str(keyframes), {"control": 0.5, "arm": 0.6}, keyframes))["arm"]
        for keyframes in (6, 80)
    )
    assert many["gain"]["mIoU"] == pytest.approx(10, abs=0.5)
    assert many["interval"]["mIoU"][0] < many["gain"]["mIoU"] < many["interval"]["mIoU"][1]
    assert np.ptp(many["interval"]["mIoU"]) < np.ptp(few["interval"]["mIoU"])


def test_gains_are_paired_by_seed(tmp_path: Path):
    """An arm that has run with seeds 0 and 1 alone is compared with these of the control."""
    arms = {"control": 0.5, "arm": 0.6}
    told_of(tmp_path, arms)
    (tmp_path / "short/arm-seed2/counts.npz").unlink()
    made = results_of.Results(tmp_path, OmegaConf.create(plan(arms)), OCC3D_CLASSES)
    told = results_of.report(made, threads=1)
    arm, control = entries(told)["arm"], entries(told)["control"]
    assert arm["seeds"] == [0, 1]
    pairs = zip(arm["values"]["mIoU"], control["values"]["mIoU"][:2], strict=True)
    assert arm["gain"]["mIoU"] == pytest.approx(np.mean([own - base for own, base in pairs]))
    assert "Not done yet: 1 of 6 runs: short/arm seed 2." in results_of.tables(told, markdown=False)


def test_half_way_to_the_ceiling_is_half_of_the_gap(tmp_path: Path):
    told = told_of(tmp_path, {"control": 0.5, "arm": 0.6, "best": 0.7}, ceiling="best")
    share = entries(told)["arm"]["share of the gap to the ceiling"]
    assert share["share"] == pytest.approx(0.5, abs=0.03)
    assert 0.4 < share["interval"][0] <= 0.5 <= share["interval"][1] < 0.6
    gains = {arm: entry["gain"]["mIoU"] for arm, entry in entries(told).items()}
    assert share["share"] == pytest.approx(gains["arm"] / gains["best"])


def test_a_gap_that_is_not_shown_is_not_divided_by(tmp_path: Path):
    share = entries(told_of(tmp_path, {"control": 0.5, "arm": 0.6, "best": 0.501}, 8, ceiling="best"))["arm"]
    assert share["share of the gap to the ceiling"]["interval"] is None


def test_lost_classes_are_unlearnt_and_worse(tmp_path: Path):
    told = entries(told_of(tmp_path, {"control": 0.5, "lossy": 0.6}, lost=(3, 7)))
    names = [OCC3D_CLASSES.names[each] for each in (3, 7)]
    assert told["lossy"]["unlearnt"] == names
    assert sorted(told["lossy"]["worse"]) == sorted(names)
    assert told["control"]["unlearnt"] == []


def test_what_the_control_never_knew_is_not_unlearnt(tmp_path: Path):
    told = entries(told_of(tmp_path, {"control": 0.0, "arm": 0.0}))
    assert told["arm"]["unlearnt"] == []


def test_one_seed_has_no_interval(tmp_path: Path):
    told = told_of(tmp_path, {"control": 0.5, "arm": 0.6, "best": 0.7}, seeds=1, ceiling="best")
    arm = entries(told)["arm"]
    assert set(arm["interval"].values()) == {None}
    assert arm["share of the gap to the ceiling"]["interval"] is None
    for text in (results_of.tables(told, markdown=True), page_of.page(told)):
        assert "one seed, an anecdote" in text
        assert "[+" not in text


def test_the_page_needs_no_network_and_leads_with_what_pays(tmp_path: Path):
    kinds = {"labels": "control", "teacher": "arm"}
    told = told_of(tmp_path, {"control": 0.5, "arm": 0.6, "worse": 0.4}, labelled=24, kinds=kinds)
    text = page_of.page(json.loads(json.dumps(told, allow_nan=False)))
    assert not re.search(r"https?://|src=|@import", text)
    (sentence,) = re.findall(r"<li>(.*?)</li>", text)
    assert sentence.startswith("a study: short, 240 steps: arm pays: +")
    assert "How many labels it takes" in text


def test_without_numbers_of_labels_kinds_are_drawn_over_latency(tmp_path: Path):
    (tmp_path / "latency.json").write_text(json.dumps({"control": 20.0, "arm": 50.0}))
    told = told_of(tmp_path, {"control": 0.5, "arm": 0.6}, kinds={"labels": "control", "teacher": "arm"})
    by_latency = told["by latency"]["short"]
    assert by_latency == {"labels": [[20, pytest.approx(50, abs=1)]], "teacher": [[50, pytest.approx(60, abs=1)]]}
    assert told["by labels"]["short"] == {}
    text = page_of.page(told)
    assert "What a keyframe takes" in text and "How many labels it takes" not in text


PLANS = [file.name for file in (ROOT / "benchmarks").glob("*.yaml")]


@pytest.mark.parametrize("name", PLANS)
def test_every_run_of_a_plan_composes(name: str):
    """And names all that it compares; a teacher's dump is composed without its checkpoint."""
    told = OmegaConf.load(ROOT / "benchmarks" / name)
    study.check(told, list(told.arms), list(told.budgets))
    given = {arm: study.flat([*told.common, *each.given]) for arm, each in told.arms.items()}
    given |= {budget: study.flat([*told.common, *each]) for budget, each in told.budgets.items()}
    given |= {teacher: study.flat(each.train) for teacher, each in told.teachers.items() if "train" in each}
    with initialize_config_module("conf", version_base="1.3"):
        for overrides in given.values():
            config = compose("train", overrides)
            assert checked("train", OmegaConf.to_container(config, resolve=True))[1] == []
            assert config.student.network.encoder is not None


@given(some.floats(-50, 50), some.floats(0.01, 100))
def test_ticks_hold_what_is_drawn(low: float, span: float):
    marks = page_of.ticks(low, low + span)
    slack = 1e-6 * span
    assert marks[0] <= low + slack
    assert marks[-1] >= low + span - slack
    assert 2 <= len(marks) <= 8
    assert np.allclose(np.diff(marks), marks[1] - marks[0])


@pytest.mark.parametrize(
    ("arms", "budgets", "more", "said"),
    [
        (["nobody"], [], {}, "--arms: there is no arm nobody: the plan has control, arm"),
        ([], ["endless"], {}, "--budgets: there is no budget endless: the plan has short"),
        ([], [], {"ceiling": "sky"}, "comparisons.all: there is no arm sky: the plan has control, arm"),
        ([], [], {"teacher": "nobody"}, "comparisons.all: there is no teacher nobody: the plan has none"),
    ],
)
def test_unknown_names_are_refused(arms: list[str], budgets: list[str], more: dict[str, Any], said: str):
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        study.check(OmegaConf.create(plan({"control": 0, "arm": 0}, **more)), arms, budgets)


def test_an_arm_may_have_fewer_budgets_and_seeds_than_all():
    told = plan({"control": 0, "tried": 0})
    told["budgets"]["long"] = []
    told["arms"]["tried"] |= {"budgets": ["short"], "seeds": [1]}
    runs = results_of.planned(OmegaConf.create(told))
    assert [run for run in runs if run[1] == "tried"] == [("short", "tried", 1)]
    assert len(runs) == 2 * SEEDS + 1
    told["arms"]["tried"]["seeds"] = [7]
    with pytest.raises(InputError, match=r"^arms\.tried: there is no seed 7: the plan has 0, 1, 2$"):
        study.check(OmegaConf.create(told), [], [])


def test_a_failing_program_ends_with_its_last_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"failed: the disk is gone \(all of it: .*log.txt\)"):
        study.logged([sys.executable, "-c", "raise SystemExit('loading\\nthe disk is gone')"], os.environ, tmp_path)


def test_a_failing_run_begins_nothing_more_and_leaves_what_is_done():
    done = []

    def run_arm(budget: str, arm: str, seed: int, environment: Mapping[str, str]) -> None:
        if seed == 1:
            raise InputError("no memory")
        done.append(seed)

    runs = [("short", "arm", seed) for seed in range(50)]
    failing = SimpleNamespace(teachers=lambda arms: [], runs=lambda arms, budgets: runs, run_arm=run_arm)
    with pytest.raises(InputError, match="no memory"):
        study.train(failing, ["arm"], ["short"], jobs=1, threads=1)
    assert done == [0]


def test_a_study_goes_on_where_it_stopped(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two arms of one seed; the second call trains nothing, and the numbers are those of occ-eval."""
    world = [f"data.world.{key}" for key in ("train_scenes=1", "val_scenes=2", "keyframes_per_scene=2")]
    given = {"labels": (None, "kd=none"), "voxel": ("shipped", "kd=voxel")}
    told = {"title": "tiny", "control": "labels", "ceiling": None, "teacher": "shipped", "arms": ["voxel"]}
    told["kinds"] = {"with a teacher": "voxel"}
    tiny = {
        "seeds": [0],
        "common": [*world, "data.world.image_size=[320,180]", "data.cache_dir=cache", *SMALL_STUDENT],
        "budgets": {"short": ["trainer.epochs=1"]},
        "teachers": {"shipped": {"store": STORE}},
        "arms": {arm: {"teacher": teacher, "given": [kd]} for arm, (teacher, kd) in given.items()},
        "comparisons": {"tiny": told},
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(tiny))  # JSON is YAML
    out, run = tmp_path / "out", tmp_path / "out/short/voxel-seed0"
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setattr(sys, "argv", ["distillation.py", str(out), "--study", str(tmp_path / "plan.yaml")])
    for _ in range(2):
        study.main()
    assert len((run / "log.txt").read_text().split("best val mIoU")) == 2

    found = json.loads((out / "study.json").read_text())
    budget = found["comparisons"]["tiny"]["budgets"]["short"]
    voxel, labels = (budget["arms"][arm] for arm in ("voxel", "labels"))
    assert voxel["gain"]["mIoU"] == pytest.approx(voxel["mean"]["mIoU"] - labels["mean"]["mIoU"])
    assert (found["missing"], found["missing teachers"], budget["steps"]) == ([], [], 2)
    assert "| voxel | 1 |" in (out / "study").with_suffix(".md").read_text()
    assert "<svg" in (out / "study.html").read_text()

    quick = ("cost.runs=1", "cost.warmup=0", f"output={tmp_path / 'eval'}")
    workshop.ok("occ-eval", f"sources=[{run / 'last.pt'},{STORE}]", "pictures=[]", *quick)
    scored = list(json.loads((tmp_path / "eval/metrics.json").read_text())["sources"].values())
    for own, theirs in zip((voxel["mean"], budget["teacher"]), scored, strict=True):
        assert own["mIoU"] == pytest.approx(theirs["metrics"]["Occ3D-17 mIoU"])
        assert own["geometric IoU"] == pytest.approx(theirs["metrics"]["Occ3D-17 geometric IoU"])
        assert own["RayIoU"] == pytest.approx(theirs["metrics"]["RayIoU"])

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--cost"])
    study.main()
    seconds = json.loads((out / "cost.json").read_text())
    assert set(seconds) == {"labels", "voxel"}
    assert min(seconds.values()) > 0
    step = f"{seconds['voxel'] / seconds['labels']:.2f} x"
    assert step in (out / "study").with_suffix(".md").read_text()
    assert json.loads((out / "latency.json").read_text()).keys() == {"voxel"}
    assert "What a keyframe takes" in (out / "study.html").read_text()
