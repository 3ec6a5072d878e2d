"""What a training says before its first step, as its user sees it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from workshop import SMALL_STUDENT, STORE, Workshop, rewrite

from distill.classes import OCC3D_CLASSES
from distill.signals.arrays import seal
from distill.store import TeacherStore

QUICK = (*SMALL_STUDENT, "trainer.epochs=1", "trainer.max_samples=1")


def gts(shop: Workshop, split: str) -> list[Path]:
    return sorted((shop.folder / "data/demo/gts").glob(f"*{split}*/*/labels.npz"))


def test_nothing_to_learn_from_is_refused_and_everything_is_said_before(copy):
    for path in gts(copy, ""):
        path.unlink()
    ended = copy.run("occ-train-student", *QUICK, "kd=none", "output=run")
    assert ended.returncode == 2
    assert "no validation keyframe has labels" in ended.stdout
    assert "none of the 1 training keyframes has labels (looked for " in ended.stderr
    assert "gts" in ended.stderr
    assert not (copy.folder / "run/tensorboard").exists()


def test_a_student_is_distilled_without_any_label(copy, workshop):
    """Nothing can be scored then: no best.pt, no nan."""
    for path in gts(copy, ""):
        path.unlink()
    store = f"teachers.stored.paths=[{workshop.folder / STORE}]"
    printed = copy.ok("occ-train-student", *QUICK, store, "output=run")
    assert "nothing will be scored" in printed
    assert "nan" not in printed
    assert not (copy.folder / "run/best.pt").exists()
    (entry,) = map(json.loads, (copy.folder / "run/metrics.jsonl").read_text().splitlines())
    assert entry["train_kd_voxel"] > 0
    assert "val_miou" not in entry


def test_a_teacher_of_no_training_keyframe_is_refused(copy, workshop):
    """missing=skip leaves out some of the teacher, not all of it: that would be kd=none under another name."""
    store = Path(shutil.copytree(workshop.folder / STORE, copy.folder / "stores/train.zarr"))
    for row in (store / "checksums").glob("c.*"):
        row.unlink()
    line = copy.refused(
        "occ-train-student", *QUICK, f"teachers.stored.paths=[{store}]", "teachers.stored.missing=skip", "output=run"
    )
    assert "none of the 1 training keyframes has a teacher in what stored has" in line


def test_an_undefined_score_is_refused_before_the_first_step(copy):
    for path in gts(copy, "val"):
        with np.load(path) as file:
            labels = dict(file)
        np.savez_compressed(path, **labels | {"mask_camera": np.zeros_like(labels["mask_camera"])})
    ended = copy.run("occ-train-student", *QUICK, "kd=none", "output=run")
    assert ended.returncode == 2
    assert "mask_camera is empty in all 1 label files of split val looked at" in ended.stderr
    assert "1 of 1 looked at" in ended.stdout


def test_keyframes_without_their_files_are_refused_or_left_out(copy):
    lost = sorted((copy.folder / "data/demo/samples/CAM_BACK").glob("*train*"))[0]
    lost.write_bytes(b"")
    all_of_them = (*SMALL_STUDENT, "trainer.epochs=1", "kd=none", "output=run")
    line = copy.refused("occ-train-student", *all_of_them)
    assert "1 of 2 keyframes of train lack files" in line
    assert lost.name in (copy.folder / "run/missing_files.txt").read_text()
    printed = copy.ok("occ-train-student", *all_of_them, "data.missing=skip")
    assert "left out: 1 of 2 keyframes of train" in printed


def test_a_teacher_of_other_images_is_refused(copy, workshop):
    """The same tokens, in a copy of the data set with one image swapped for another."""
    images = sorted((copy.folder / "data/demo/samples/CAM_FRONT").glob("*train*"))
    shutil.copy(images[1], images[0])
    store = f"teachers.stored.paths=[{workshop.folder / STORE}]"
    line = copy.refused("occ-train-student", *SMALL_STUDENT, store, "output=run")
    assert "1 of 2 keyframes were dumped from other files" in line
    assert "CAM_FRONT" in line


def test_a_second_process_on_a_run_is_refused_and_told_of_the_first(workshop):
    command = workshop.command("occ-train-student", *SMALL_STUDENT, "kd=none", "trainer.epochs=50", "output=runs/busy")
    first = subprocess.Popen(command, cwd=workshop.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lock = workshop.folder / "runs/busy/.lock"
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None
        time.sleep(0.02)
    line = workshop.refused("occ-train-student", *SMALL_STUDENT, "kd=none", "trainer.epochs=50", "output=runs/busy")
    assert f"is in use by process {first.pid} on " in line
    first.kill()
    first.wait()


def test_a_sweep_has_a_run_for_every_value(workshop):
    rates = ("1e-3", "1e-4")
    sweep = (f"trainer.learning_rate={','.join(rates)}", "name='sweep${variant}'")
    quick = [override for override in QUICK if not override.startswith("teachers.")]  # a name has room for so much
    workshop.ok("occ-train-student", *quick, "-m", "kd=none", *sweep)
    runs = sorted(path.parent.name for path in (workshop.folder / "runs/demo").glob("sweep*/best.pt"))
    told = [float(run.rpartition("learning_rate_")[2].partition("-trainer")[0]) for run in runs]
    assert told == sorted(map(float, rates))


def test_a_run_goes_on_after_everything_moved(copy, tmp_path):
    """Another dataroot, cache, working folder and HOME: as if it had never stopped."""
    run = ("kd=none", "trainer.max_samples=2")
    copy.ok("occ-train-student", *SMALL_STUDENT, *run, "output=run")
    moved = Workshop(tmp_path / "elsewhere")
    moved.folder.mkdir()
    shutil.move(copy.folder / "data", moved.folder / "files")
    shutil.move(copy.folder / "run", moved.folder / "there")
    settings = ("data.root=files/demo", "data.cache_dir=index", "output=there", "trainer.workers=1")
    assert "step 4 of 4" in moved.ok("occ-train-student", *SMALL_STUDENT, *run, *settings)


def test_a_dump_of_other_images_is_not_taken_for_present(copy, workshop):
    """The same command on a copy of the data with one image swapped; a copy alone is the same data."""
    store = Path(shutil.copytree(workshop.folder / STORE, copy.folder / STORE))
    assert "6 of 6 keyframes are present" in copy.ok("occ-dump", "gate.min_miou=1")
    images = sorted((copy.folder / "data/demo/samples/CAM_FRONT").glob("*val*"))
    shutil.copy(images[1], images[0])
    line = copy.refused("occ-dump", "gate.min_miou=1")
    assert "1 of the 6 keyframes in " in line
    assert "CAM_FRONT" in line
    assert len(TeacherStore(store).present) == 6
    redone = copy.ok("occ-dump", "gate.min_miou=1", "dump.overwrite=true", "dump.splits=[val]", "dump.max_samples=1")
    assert "dumped 1 keyframes" in redone
    assert "6 of 6 keyframes are present" in copy.ok("occ-dump", "gate.min_miou=1")


def test_a_score_beside_a_teacher_that_saw_other_images_says_so(copy, trained, workshop):
    images = sorted((copy.folder / "data/demo/samples/CAM_FRONT").glob("*val*"))
    shutil.copy(images[1], images[0])
    quick = ("pictures=[]", "cost.runs=1", "cost.warmup=0", "output=eval")
    printed = copy.ok("occ-eval", f"checkpoint={trained}", f"data.root={copy.folder / 'data/demo'}", *quick)
    assert "1 of 4 keyframes were dumped from other files" in printed


def test_a_store_that_lacks_keyframes_is_scored_on_those_it_has_when_asked(workshop):
    """As a dump with data.missing=skip leaves it."""
    part = ("store.path=stores/part.zarr", "dump.splits=[val]", "dump.max_samples=1", "gate.min_miou=0")
    workshop.ok("occ-dump", *part)
    source = ("sources=[stores/part.zarr]", "data.root=data/demo", "data.version=v1.0-demo", "pictures=[]")
    assert "data.missing=skip" in workshop.refused("occ-eval", *source)
    printed = workshop.ok("occ-eval", *source, "data.missing=skip", "output=part")
    assert "left out: 3 of 4 keyframes that part lacks" in printed
    assert json.loads((workshop.folder / "part/metrics.json").read_text())["scored"]["keyframes"] == 1


def test_a_store_that_does_not_say_what_it_was_dumped_from_is_said(workshop):
    """Schema 2, which is made here of what it had: no digests, and commit records in another order."""
    kept_as_then = (
        "dump.signals=[voxels,bev]",
        "store.encoding=fine",
        "store.path=stores/schema2.zarr",
        "gate.min_miou=1",
    )
    workshop.ok("occ-dump", *kept_as_then)
    store = workshop.folder / "stores/schema2.zarr"
    shutil.rmtree(store / "frame_digests")
    columns = ("voxel_logits", "voxel_semantics", "voxel_coverage", "bev_probs", "bev_semantics")
    for record in (store / "checksums").glob("c.*"):
        row = record.name.split(".")[1]
        chunks = [next((store / name).glob(f"c.{row}.*")).read_bytes() for name in columns]
        record.write_bytes(seal(b"".join(chunk[-4:] for chunk in chunks)))
    described = json.loads((store / "zarr.json").read_text())
    today = described["attributes"]
    described["attributes"] = {
        **{key: today[key] for key in ("teacher", "checkpoint_sha256", "config", "grid", "classes")},
        "schema": 2,
        "content": "log_probabilities",
        "bev_rule": today["signals"]["bev"]["rule"],
        "quantisation": {"levels": today["signals"]["voxels"]["levels"]},
        "gaussians": None,
    }
    (store / "zarr.json").write_text(json.dumps(described))
    source = ("teachers.stored.paths=[stores/schema2.zarr]", "output=runs/schema2")
    workshop.ok("occ-train-student", *QUICK, *source)
    told = (workshop.folder / "runs/schema2/summary.txt").read_text()
    assert "schema2.zarr is of schema 2, which does not say which files it was dumped from" in told


def test_terms_about_unlabelled_keyframes_are_refused_where_there_are_none(workshop):
    """They would be silent, and the run that of kd=none under another name."""
    line = workshop.refused("occ-train-student", *QUICK, "kd=pseudo", "output=runs/idle")
    assert "pseudo_ce, pseudo_lovasz of kd=pseudo are about keyframes without labels, and all 1 training" in line
    printed = workshop.ok("occ-train-student", *QUICK, "kd=balanced_pseudo", "output=runs/half-idle")
    assert "pseudo_ce, pseudo_lovasz have nothing to say: all training keyframes have labels" in printed


def test_thresholds_by_precision_are_measured_said_and_the_same_when_the_run_goes_on(workshop):
    run = (*QUICK, "kd=pseudo", "kd.frames=all", "kd.threshold={precision: 0.6}", "output=runs/precise")
    workshop.ok("occ-train-student", *run)
    summary = workshop.folder / "runs/precise/summary.txt"
    told = summary.read_text()
    table = told.partition("classes of stored are labels from these confidences on (kd.threshold.precision=0.6):\n")[2]
    thresholds = [cell.rpartition(" ")[2] for line in table.splitlines() for cell in re.split(r"\s{2,}", line.strip())]
    assert len(thresholds) == len(OCC3D_CLASSES)
    assert len(set(thresholds)) > 1
    (entry,) = map(json.loads, (workshop.folder / "runs/precise/metrics.jsonl").read_text().splitlines())
    assert entry["train_pseudo_ce"] > 0
    assert "step 1 of 1" in workshop.ok("occ-train-student", *run)
    assert summary.read_text() == told


def test_thresholds_by_precision_need_labels(copy, workshop):
    for path in gts(copy, "train"):
        path.unlink()
    store = f"teachers.stored.paths=[{workshop.folder / STORE}]"
    line = copy.refused("occ-train-student", *QUICK, store, "kd=pseudo", "kd.threshold={precision: 0.6}", "output=run")
    assert "kd.threshold.precision needs labelled keyframes: there is none in training of whose visible voxels " in line
    assert "stored says something: give kd.threshold=0.5" in line


def test_an_old_store_does_not_know_what_is_seen_where_there_are_no_labels(copy, workshop):
    """It goes on teaching where all is labelled, and, where it is told so, everywhere; nobody else is refused."""
    store = Path(shutil.copytree(workshop.folder / STORE, copy.folder / "stores/old.zarr"))
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    position = attributes["columns"].index("seen")
    assert position == len(attributes["columns"]) - 1
    del attributes["columns"][position], attributes["signals"]["seen"], attributes["files"]["seen/zarr.json"]
    rewrite(store, attributes)
    shutil.rmtree(store / "seen")
    for record in (store / "checksums").glob("c.*"):
        record.write_bytes(seal(record.read_bytes()[: 4 * position]))
    old = (*QUICK, f"teachers.stored.paths=[{store}]")
    copy.ok("occ-train-student", *old, "output=labelled")
    for path in gts(copy, "train"):
        path.unlink()
    line = copy.refused("occ-train-student", *old, "output=run")
    assert "old.zarr holds voxels, bev on grid occ3d): dump into a new store.path with " in line
    assert "dump.signals=[voxels,bev,seen], or set kd.unlabelled=all" in line
    copy.ok("occ-train-student", *old, "output=run", "kd.unlabelled=all")
    line = copy.refused("occ-train-student", *old, "output=prior", "kd.unlabelled=prior")
    assert "kd.unlabelled=prior is the mean mask_camera of training keyframes with labels, and none has any" in line


def test_frames_without_labels_are_taught_where_the_configuration_says(copy, workshop):
    """One of two keyframes has labels; what is learnt of the other one differs."""
    gts(copy, "train")[0].unlink()
    run = (*SMALL_STUDENT, "trainer.epochs=1", f"teachers.stored.paths=[{workshop.folder / STORE}]")
    losses = []
    for name in ("seen", "prior"):
        copy.ok("occ-train-student", *run, f"kd.unlabelled={name}", f"output={name}")
        losses.append(json.loads((copy.folder / name / "metrics.jsonl").read_text())["train_kd_voxel"])
    assert losses[0] != losses[1]
