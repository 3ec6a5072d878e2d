"""Interrupted programs go on where they stopped, and several processes do what one does."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from workshop import SMALL_STUDENT, STORE, Workshop

from distill.nuscenes.withheld import Withheld
from distill.store import TeacherStore

HALF = "trainer.withheld={share: 0.5, seed: ${seed}}"


def present(store: Path) -> frozenset[str]:
    return TeacherStore(store).present


def test_training_interrupted_between_epochs_ends_with_the_same_numbers(workshop, trained):
    """kill -9 after the first checkpoint, run again: the same weights as the uninterrupted run, bit for bit."""
    overrides = (*SMALL_STUDENT, "output=runs/killed", "trainer.checkpoint_every=1")
    last = workshop.folder / "runs" / "killed" / "last.pt"
    process = subprocess.Popen(workshop.command("occ-train-student", *overrides), cwd=workshop.folder)
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(last, weights_only=True)["step"] < 4
    assert "going on from" in workshop.ok("occ-train-student", *overrides)
    resumed, straight = (torch.load(path, weights_only=True) for path in (last, trained.parent / "last.pt"))
    assert resumed["history"] == straight["history"]
    for part in ("network", "ema"):
        assert all(torch.equal(value, straight[part][name]) for name, value in resumed[part].items())


@pytest.fixture(scope="module")
def few_labels(tmp_path_factory):
    """A world of two training scenes, the same without the labels that `HALF` withholds there, and what to train."""
    shop, deleted = (Workshop(tmp_path_factory.mktemp(name)) for name in ("withheld", "deleted"))
    world = ("data.world.train_scenes=2", "data.world.val_scenes=1")
    shop.ok("occ-dump", *world, "gate.min_miou=1", "dump.splits=[train]")
    shutil.copytree(shop.folder / "data", deleted.folder / "data")
    shutil.copytree(shop.folder / "stores", deleted.folder / "stores")
    (hidden,) = Withheld(None, ["demo-train-000", "demo-train-001"], 0.5, 0).scenes
    shutil.rmtree(deleted.folder / "data/demo/gts" / hidden)
    kd = ("kd=balanced_pseudo", "kd.threshold={precision: 0.5}")  # thresholds are measured anew by whoever goes on
    return shop, deleted, (*world, *SMALL_STUDENT, *kd, "trainer.batch_size=2", "output=run")


@pytest.fixture(scope="module")
def withheld(few_labels):
    """Its folder, with a run with labels withheld; killed after the first checkpoint, and gone on with."""
    shop, _, run = few_labels
    command = shop.command("occ-train-student", *run, HALF, "trainer.workers=1", "trainer.checkpoint_every=1")
    process = subprocess.Popen(command, cwd=shop.folder)
    while not (shop.folder / "run/last.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "going on from" in shop.ok("occ-train-student", *run, HALF, "trainer.workers=1")
    return shop.folder / "run"


def assert_same_training(one, other):
    """The same data, the same losses and the same weights, bit for bit."""
    one, other = (torch.load(run / "last.pt", weights_only=True) for run in (one, other))
    assert one["data"] == other["data"]
    assert one["history"] == other["history"]
    assert all(one["history"][-1][f"train_{term}"] > 0 for term in ("kd_voxel", "pseudo_ce"))
    for part in ("network", "ema"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())


def test_withheld_labels_are_as_ones_that_were_deleted(few_labels, withheld):
    """While the teacher goes on teaching."""
    _, deleted, run = few_labels
    deleted.ok("occ-train-student", *run)
    assert_same_training(withheld, deleted.folder / "run")
    heads, train = (re.split(r"\s{2,}", line) for line in (withheld / "summary.txt").read_text().splitlines()[:2])
    row = dict(zip(heads, train, strict=True))
    assert (row["whole"], row["labelled"], row["withheld"]) == ("4", "2", "2 (1 scenes)")
    assert row["with a teacher"].startswith("4 (fusion")


def test_other_withheld_labels_are_another_run(few_labels, withheld):
    shop, _, run = few_labels
    line = shop.refused("occ-train-student", *run, "trainer.withheld={share: 0.6, seed: 0}")
    assert "trainer.withheld.share=0.5 became 0.6" in line
    assert "trainer.withheld.share=0.5 became None" in shop.refused("occ-train-student", *run)
    line = shop.refused("occ-train-student", *run, "trainer.withheld={share: 0.8, seed: 0}", "output=most")
    assert "share=0.8 withholds 2 of 2 training scenes" in line


def thresholds(run: Path) -> str:
    """The table of what pseudo-labels are heard from on."""
    _, table = (run / "summary.txt").read_text().split("(kd.threshold.precision=0.5):\n")
    return table


def test_two_processes_withhold_the_same_labels(few_labels, withheld):
    shop, deleted, run = few_labels
    for each, half in ((shop, [HALF]), (deleted, [])):
        overrides = (*run, *half, "trainer.epochs=1", "trainer.max_val_samples=2")
        ended = each.launch(2, "occ-train-student", *overrides, "output=two")
        assert ended.returncode == 0, ended.stderr
    assert_same_training(shop.folder / "two", deleted.folder / "two")
    assert thresholds(shop.folder / "two") == thresholds(withheld)


def test_resuming_with_another_configuration_names_the_difference(workshop, trained):
    line = workshop.refused("occ-train-student", *SMALL_STUDENT, "output=runs/first", "trainer.learning_rate=1")
    assert "trainer.learning_rate" in line


def test_killed_dump_resumes_without_a_broken_sample(workshop):
    overrides = ("gate.min_miou=1", "store.path=stores/killed.zarr")
    store = workshop.folder / "stores/killed.zarr"
    process = subprocess.Popen(workshop.command("occ-dump", *overrides), cwd=workshop.folder)
    while not store.exists() or len(present(store)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survived = present(store)
    assert 2 <= len(survived) < 6
    printed = workshop.ok("occ-dump", *overrides, "dump.verify=true")
    assert "0 damaged samples" in printed
    assert f"{len(survived)} of 6 keyframes are present" in printed
    assert len(present(store)) == 6


def start_two_dumps(workshop, *overrides: str) -> list[subprocess.Popen[str]]:
    command = workshop.command("occ-dump", "gate.min_miou=0", *overrides)
    pipe = subprocess.PIPE
    return [subprocess.Popen(command, cwd=workshop.folder, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]


def test_a_dump_started_twice_shares_the_work(workshop):
    """Without torchrun, as one would start it on two machines; the second time both are told to overwrite."""
    store = workshop.folder / "stores/v1.0-twice"
    for overwrite in (False, True):
        overrides = (f"store.path={store}", "dump.max_samples=4", f"dump.overwrite={overwrite}")
        processes = start_two_dumps(workshop, *overrides)
        told = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        dumped = [int(line.split()[1]) for text in told for line in text.splitlines() if line.startswith("dumped ")]
        assert 4 <= sum(dumped) <= (8 if overwrite else 4)
        assert len(present(store)) == 4
        for token in present(store):
            TeacherStore(store).verify(token)
    assert not list(store.rglob("*.partial"))
    assert store.with_name("v1.0-twice.png").exists()


def test_what_a_killed_dump_had_begun_is_done_by_the_other(workshop):
    store = workshop.folder / "stores/orphaned.zarr"
    killed, other = start_two_dumps(workshop, f"store.path={store}")
    while not store.exists() or not present(store):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    told, _ = other.communicate()
    assert other.returncode == 0
    assert "another process" not in told
    assert len(present(store)) == 6
    for token in present(store):
        TeacherStore(store).verify(token)


def test_two_processes_dump_what_one_dumps(workshop):
    ended = workshop.launch(2, "occ-dump", "gate.min_miou=1", "store.path=stores/two.zarr", "dump.max_samples=3")
    assert ended.returncode == 0, ended.stderr
    one, two = (TeacherStore(workshop.folder / store) for store in (STORE, "stores/two.zarr"))
    assert len(two.present) == 3
    for token in two.present:
        assert np.array_equal(one.semantics(token), two.semantics(token))


def test_two_processes_train(workshop):
    overrides = ("output=runs/two", "trainer.epochs=1", "trainer.batch_size=2", "trainer.max_val_samples=2")
    ended = workshop.launch(2, "occ-train-student", *SMALL_STUDENT, *overrides)
    assert ended.returncode == 0, ended.stderr
    assert torch.load(workshop.folder / "runs" / "two" / "last.pt", weights_only=True)["world_size"] == 2


def test_two_processes_score_like_one(workshop, trained):
    overrides = (f"checkpoint={trained}", "pictures=[]", "cost.warmup=0", "cost.runs=1")
    workshop.ok("occ-eval", *overrides, "output=score1")
    ended = workshop.launch(2, "occ-eval", *overrides, "output=score2")
    assert ended.returncode == 0, ended.stderr
    one, two = (json.loads((workshop.folder / f"score{n}/metrics.json").read_text())["sources"] for n in (1, 2))
    assert one["student"]["metrics"]["Occ3D-17 mIoU"] > 0
    for source in ("student", "teacher"):
        for part in ("metrics", "per_class", "confusion", "bands", "reliability"):
            assert one[source][part] == two[source][part]


def test_more_ranks_than_samples(workshop):
    ended = workshop.launch(2, "occ-dump", "dump.max_samples=1")
    assert ended.returncode != 0
    assert "2 ranks for 1 keyframes" in ended.stderr
