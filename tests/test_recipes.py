"""The recipes of docs/architecture.md, done as they stand there: no file of the project is touched."""

from __future__ import annotations

import json
import re
import shlex
import sys

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file
from workshop import ROOT, SMALL_STUDENT, Workshop

from distill.checkpoint import export, load_checkpoint

LONGEST = 40  # lines of a recipe's files
PAGE = (ROOT / "docs/architecture.md").read_text()
RECIPES = {title: body for title, body in re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", PAGE, re.M | re.S)}
GUIDE = (ROOT / "docs/guide.md").read_text()
QUICK = (*SMALL_STUDENT, "trainer.max_samples=1", "trainer.epochs=1", "trainer.gradient_norms_every=1")


def done(title: str, shop: Workshop) -> list[str]:
    """Write the files of a recipe, run its commands, and return what they printed."""
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", RECIPES[title], re.S):
        assert len(code.splitlines()) <= LONGEST, (title, name)
        (shop.folder / name).write_text(code)
    printed = []
    for line in re.findall(r"^\$ (.+)$", RECIPES[title], re.M):
        program, *overrides = shlex.split(line)
        small = {"occ-train-student": QUICK, "occ-dump": ("gate.min_miou=0",), "occ-eval": ("pictures=[]",)}[program]
        printed.append(shop.ok(program, *small, *overrides))
    return printed


@pytest.fixture
def shop(copy, workshop):
    """A folder of one's own, with a copy of the world and a dump of it."""
    (copy.folder / "stores").symlink_to(workshop.folder / "stores")
    return copy


def last(shop: Workshop, run: str) -> dict:
    return torch.load(shop.folder / "runs" / run / "last.pt", weights_only=True)


def test_every_recipe_is_tried():
    assert len(RECIPES) == 5


def test_a_term_learns_is_saved_resumed_and_left_out_of_exports(shop):
    title = next(title for title in RECIPES if title.startswith("A term"))
    done(title, shop)
    state = last(shop, "term")
    assert state["objective"].keys() == {"terms.standing.probe.weight", "terms.standing.probe.bias"}
    (entry,) = map(json.loads, (shop.folder / "runs/term/metrics.jsonl").read_text().splitlines())
    assert entry["train_standing"] == pytest.approx(0.1 * entry["train_standing_raw"])
    assert "step 1 of 1" in done(title, shop)[0]
    exported = shop.folder / "out.safetensors"
    export(load_checkpoint(str(shop.folder / "runs/term/last.pt"), "ema"), exported)
    assert load_file(exported).keys() == state["ema"].keys()


def test_a_signal_is_dumped_stored_streamed_and_listened_to(copy):
    (title,) = (title for title in RECIPES if title.startswith("A signal"))
    done(title, copy)
    group = zarr.open_group(copy.folder / "stores/heights.zarr", mode="r")
    occupied_XY = (group["voxel_semantics"][0] != 17).sum(-1)  # type: ignore[index, operator, union-attr]
    np.testing.assert_array_equal(group["heights"][0], occupied_XY)  # type: ignore[index]
    state = last(copy, "signal")
    assert state["teachers"]["stored"]["terms"] == ["heights"]
    assert state["history"][0]["train_heights"] > 0


def test_a_network_is_trained_and_scored(shop):
    (title,) = (title for title in RECIPES if title == "A network")
    done(title, shop)
    scored = json.loads((shop.folder / "runs/network/eval/metrics.json").read_text())["sources"]
    assert set(scored) == {"student", "teacher"}
    assert last(shop, "network")["ema"].keys() == {"logits.weight", "logits.bias"}


def test_a_teacher_is_dumped(copy):
    printed = done("A teacher", copy)[0]
    assert "teacher mIoU 100.00" in printed


def test_a_program_in_its_own_environment_teaches_as_the_guide_says(copy):
    """Its first command, with the interpreter of these tests for `python`."""
    _, section = GUIDE.split("### Your own teacher, in its own environment\n")
    name, code = re.search(r"```python\n# (\S+)\n(.*?)```", section, re.S).groups()
    (copy.folder / name).write_text(code)
    program, *overrides = shlex.split(re.search(r"^\$ (.+)$", section, re.M)[1])
    here = [override.replace("=python ", f"={sys.executable} ") for override in overrides]
    assert "teacher mIoU 100.00" in copy.ok(program, "gate.min_miou=1", *here)


def test_labels_are_read_from_elsewhere(shop):
    (shop.folder / "data/demo/mine").mkdir()
    for path in (shop.folder / "data/demo/gts").glob("*/*/labels.npz"):
        with np.load(path) as file:
            np.save(shop.folder / "data/demo/mine" / f"{path.parent.name}.npy", file["semantics"])
    printed = done("Labels from elsewhere", shop)[0]
    assert "100.0%" in next(line for line in printed.splitlines() if line.startswith("train"))
