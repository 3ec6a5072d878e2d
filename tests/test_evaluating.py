"""occ-eval as a user runs it on what is not whole, and with everything that can be asked of it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from workshop import SMALL_STUDENT, STORE, Workshop, rewrite

from distill.files import owned

DATA = ("data.root=data/demo", "data.version=v1.0-demo", "data.cache_dir=cache")
QUICK = ("pictures=[]", "cost.warmup=0", "cost.runs=1")


@pytest.fixture
def here(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A folder whose ground truth and predictions a test may damage: predictions are the ground truth."""
    (tmp_path / "stores").symlink_to(workshop.folder / "stores")
    (tmp_path / "data" / "demo").mkdir(parents=True)
    for entry in (workshop.folder / "data" / "demo").iterdir():
        if entry.name == "gts":
            shutil.copytree(entry, tmp_path / "data/demo/gts")
        else:
            (tmp_path / "data" / "demo" / entry.name).symlink_to(entry)
    (tmp_path / "predictions").mkdir()
    for labels in tmp_path.glob("data/demo/gts/*/*/labels.npz"):
        np.savez(tmp_path / "predictions" / f"{labels.parent.name}.npz", pred=np.load(labels)["semantics"])
    return Workshop(tmp_path)


def val_files(here: Workshop) -> list[Path]:
    """The predictions for the keyframes of the validation split, in order."""
    labels = [token for scene in sorted(here.folder.glob("data/demo/gts/*val*")) for token in scene.iterdir()]
    return [here.folder / "predictions" / f"{token.name}.npz" for token in labels]


def test_ground_truth_scores_100_and_missing_ground_truth_is_counted(here):
    first, *others = val_files(here)
    shutil.rmtree(next(here.folder.glob(f"data/demo/gts/*/{first.stem}")))
    printed = here.ok("occ-eval", f"sources=[predictions,{STORE}]", *DATA, *QUICK, "output=report")
    assert "(1 more have no labels)" in printed
    results = json.loads((here.folder / "report/metrics.json").read_text())
    assert results["scored"]["keyframes"] == len(others)
    assert results["scored"]["unlabelled"] == 1
    truth, store = (results["sources"][name]["metrics"] for name in ("predictions", "demo-fusion-occ3d"))
    assert truth["Occ3D-17 mIoU"] == truth["RayIoU"] == 100
    assert truth["flicker"] == 0
    assert "ECE" not in truth
    assert 0 < store["Occ3D-17 mIoU"] < 100
    assert 0 < store["ECE"] < 100
    assert f"({store['RayIoU'] - 100:+.2f})" in printed
    rows = list(csv.reader((here.folder / "report/keyframes.csv").open()))
    assert {row[0] for row in rows[1:]} == {path.stem for path in others}


def test_bad_predictions_are_listed_before_anything_is_scored(here):
    gone, float_valued, wrong_grid, *_ = val_files(here)
    gone.unlink()
    np.savez(float_valued, pred=np.full((200, 200, 16), np.nan, np.float32))
    np.savez(wrong_grid, pred=np.zeros((100, 100, 8), np.uint8))
    (here.folder / "report").mkdir()
    (here.folder / "report/metrics.json").write_text("of an earlier evaluation")
    line = here.refused("occ-eval", "sources=[predictions]", *DATA, *QUICK, "output=report")
    assert "1 missing" in line
    assert "report/bad_predictions.csv" in line
    rows = list(csv.DictReader((here.folder / "report/bad_predictions.csv").open()))
    assert {row["token"] for row in rows} == {gone.stem, float_valued.stem, wrong_grid.stem}
    assert not (here.folder / "report/metrics.json").exists()


def test_a_store_that_lacks_keyframes_is_refused(here):
    here.ok("occ-dump", "dump.splits=[train]", "dump.max_samples=1", "gate.min_miou=1", "store.path=few.zarr")
    line = here.refused("occ-eval", "sources=[few.zarr]", *DATA, *QUICK, "output=report")
    assert "few.zarr lacks" in line


def test_keyframes_without_labels_are_exported_alone(here):
    shutil.rmtree(here.folder / "data/demo/gts")
    given = (f"sources=[{STORE}]", *DATA, *QUICK, "output=report")
    printed = here.ok("occ-eval", *given, "export=exported", "max_samples=1")
    assert "none has labels" in printed
    (prediction,) = (here.folder / "exported/demo-fusion-occ3d").glob("*.npz")
    assert np.load(prediction)["pred"].shape == (200, 200, 16)
    assert not (here.folder / "report/metrics.json").exists()
    line = here.refused("occ-eval", *given)
    assert "export=" in line and "data/demo/gts/" in line and "labels.npz" in line


def test_a_report_folder_is_written_by_one_evaluation_at_a_time_and_keeps_to_its_data(here):
    report = here.folder / "predictions-eval-val-max_samples_1"
    report.mkdir()
    given = ("occ-eval", "sources=[predictions]", "max_samples=1", *DATA, *QUICK)
    with owned(report / ".lock", "the report folder"):
        assert f"in use by process {os.getpid()}" in here.refused(*given)
    earlier = {"scored": {"dataroot": "/another/v1.0-demo"}}
    (report / "metrics.json").write_text(json.dumps(earlier))
    assert "/another/v1.0-demo" in here.refused(*given)
    assert json.loads((report / "metrics.json").read_text()) == earlier


def alter_labels(here: Workshop, **changes) -> None:
    """Change arrays of all labels."""
    for path in here.folder.glob("data/demo/gts/*/*/labels.npz"):
        labels = dict(np.load(path))
        np.savez(path, **labels | {name: change(labels[name]) for name, change in changes.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_camera": np.zeros_like}, "their masks are empty"),
        ({"semantics": lambda labels: np.full_like(labels, 17)}, "none of their visible voxels is occupied"),
        ({"semantics": lambda labels: (labels - (labels > 0)).astype(np.uint8)}, "0.0% of the voxels are free"),
    ],
    ids=["empty masks", "nothing but free", "free is 16"],
)
def test_labels_that_score_nothing_are_refused(here, changes, message):
    alter_labels(here, **changes)
    line = here.refused("occ-eval", "sources=[predictions]", *DATA, *QUICK, "output=report")
    assert message in line
    assert not (here.folder / "report/metrics.json").exists()


def test_a_store_of_another_teacher_is_not_shown_as_the_teacher(workshop, trained, tmp_path):
    """It lies where the checkpoint's store lay, and is told by what it is."""
    other = shutil.copytree(workshop.folder / STORE, tmp_path / "other.zarr")
    attributes = json.loads((other / "zarr.json").read_text())["attributes"]
    taught = attributes["checkpoint_sha256"]
    rewrite(other, attributes | {"checkpoint_sha256": "ab" * 32})
    given = (f"checkpoint={trained}", "max_samples=1", *QUICK)
    printed = workshop.ok("occ-eval", *given, f"teachers.stored.paths=[{other}]", f"output={tmp_path / 'report'}")
    assert f"another teacher (fusion {'ab' * 6}) than the one that taught" in printed
    assert f"(fusion {taught[:12]})" in printed
    assert "not the teacher of this checkpoint" in printed
    results = json.loads((tmp_path / "report/metrics.json").read_text())
    assert list(results["sources"]) == ["student"]


def test_a_student_beside_its_control_is_judged_first(workshop, trained, tmp_path):
    """By one process and by two alike; the gap is that to the store that taught it."""
    workshop.ok("occ-train-student", *SMALL_STUDENT, "kd=none", f"output={tmp_path / 'control'}")
    given = (f"checkpoint={trained.parent / 'last.pt'}", f"sources=[{tmp_path / 'control/last.pt'}]", *QUICK)
    lines = workshop.ok("occ-eval", *given, f"output={tmp_path / 'one'}").splitlines()
    said = next(place for place, line in enumerate(lines) if line.startswith("mIoU: no difference that 4 keyframes"))
    assert said < next(place for place, line in enumerate(lines) if line.startswith("percent"))
    results = json.loads((tmp_path / "one/metrics.json").read_text())
    verdict, sources = results["verdict"], results["sources"]
    assert (verdict["student"], verdict["control"], verdict["teacher"]) == ("student", "control", "teacher")
    assert verdict["not trained alike"] == [] and verdict["keyframes"] == 4
    for short, name in (("mIoU", "Occ3D-17 mIoU"), ("geometric IoU", "Occ3D-17 geometric IoU"), ("RayIoU", "RayIoU")):
        student, teacher, control = (sources[source]["metrics"][name] for source in ("student", "teacher", "control"))
        assert verdict["gains"][short]["gain"] == pytest.approx(student - control)
        assert verdict["gains"][short]["share of the gap"] == pytest.approx((student - control) / (teacher - control))
    assert "no difference that 4 keyframes can show" in (tmp_path / "one/report.html").read_text()
    ended = workshop.launch(2, "occ-eval", *given, f"output={tmp_path / 'two'}")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "two/metrics.json").read_text())["verdict"] == verdict


def test_sources_of_one_name_keep_their_columns(here):
    shutil.copytree(here.folder / "predictions", here.folder / "other/predictions")
    given = ("sources=[predictions,other/predictions]", "max_samples=1", "output=report")
    here.ok("occ-eval", *given, *DATA, *QUICK)
    sources = json.loads((here.folder / "report/metrics.json").read_text())["sources"]
    assert {name: source["path"] for name, source in sources.items()} == {
        "predictions": str(here.folder / "predictions"),
        "predictions-2": str(here.folder / "other/predictions"),
    }


def test_a_network_under_bad_conditions(workshop, trained):
    """Corruptions and test-time augmentation, through the program."""
    few = ("robustness=standard", *(f"~robustness.{name}" for name in ("jpeg", "turned", "moved", "brighter", "blur")))
    given = (f"checkpoint={trained}", "teachers.stored.paths=[]", "max_samples=1", "output=runs/worse", "tta=flip")
    workshop.ok("occ-eval", *given, *few, *QUICK)
    sources = json.loads((workshop.folder / "runs/worse/metrics.json").read_text())["sources"]
    student = sources.pop("student")
    assert not sources  # an empty list of stores leaves the teacher out
    assert student["facts"]["test-time augmentation"] == "mean of 4 mirrored views"
    clean, *rows = student["robustness"]
    assert clean["miou"] == student["metrics"]["Occ3D-17 mIoU"]
    conditions = [row["condition"] for row in rows]
    assert sum(name.startswith("dropped CAM_") for name in conditions) == 6
    assert "worst dropped camera" in conditions
    assert any(name.startswith("noise") for name in conditions)
    table = list(csv.reader((workshop.folder / "runs/worse/robustness.csv").open()))
    assert len(table) == 1 + 1 + len(rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sources=[nowhere]"], "nowhere"),
        (["sources=[predictions]"], "data.root"),
        (["sources=[predictions]", *DATA, "pictures=[nonsense]"], "nonsense"),
        (["sources=[predictions]", *DATA, "split=nonsense"], "nonsense"),
        (["sources=[predictions]", *DATA, "tta=flip"], "tta"),
        (["sources=[predictions]", *DATA, "grid=surroundocc", "data.surroundocc=nowhere"], "nowhere/samples"),
        (["sources=[predictions]", *DATA, "output=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_mistakes(here, overrides, message):
    assert message in here.refused("occ-eval", *overrides)
