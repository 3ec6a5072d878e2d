"""occ-export onnx=int8: answers that stay, ranges of training keyframes, and which layers are too sensitive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_module
from test_export import SHIPPED, TINY, frame, made
from workshop import Workshop

from distill.checkpoint import Checkpoint, load_checkpoint
from distill.errors import InputError
from distill.frame import stack
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import load_index
from student.evaluation.deployed import Deployed
from student.export.int8 import Int8, most_sensitive
from student.export.main import training_frames
from student.export.onnx_file import write_onnx
from student.export.runtime import OnnxFile
from student.quantisation import named

DATA = ("data=nuscenes", "data.root=data/demo", "data.version=v1.0-demo", "data.cache_dir=cache")


def composed(*overrides: str):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("export", ["checkpoint=best.pt", "onnx=int8", *overrides])


def changed(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of what either calls occupied that is of another class."""
    return float((found != expected).sum() / ((found != 17) | (expected != 17)).sum())


def test_the_shipped_student_answers_alike_in_8_bits(workshop: Workshop):
    printed = workshop.ok(
        "occ-export", f"checkpoint={SHIPPED}", "output=int8.onnx", "onnx=int8", *DATA, "onnx.int8.frames=2"
    )
    assert "int8.onnx: demo, 2." in printed  # megabytes, of 6.7
    file, checkpoint = OnnxFile(workshop.folder / "int8.onnx"), load_checkpoint(SHIPPED, "ema")
    assert file.facts["precision"] == "int8, ranges of 2 frames"
    assert file.facts["float32_layers"] == []
    index = load_index(workshop.folder / "data/demo", "v1.0-demo", workshop.folder / "cache")
    inputs = checkpoint.config["student"]["inputs"]
    keyframes = FrameDataset(
        index.keyframes("val"), labels=None, augmentation=None, seed=0, depth_stride=None, **inputs
    )
    batch = stack([keyframes[0]])
    with torch.inference_mode():
        expected = checkpoint.network()(batch).voxel_logits_BXYZC.argmax(-1).numpy()
    found = Deployed(file)(batch).voxel_logits_BXYZC.argmax(-1).numpy()
    # where the ranges were not those behind a ReLU, a third of them would change
    assert changed(found, expected) < 0.2


class Towns:
    """An index of ten training scenes, four keyframes each."""

    def keyframes(self, split: str) -> list[tuple[int, int]]:
        assert split == "train"
        return [(scene, step) for scene in range(10) for step in range(4)]


def test_frames_are_of_all_training_scenes_and_none_is_judged_that_gave_ranges(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("student.export.main.open_dataroot", lambda data: Towns())
    monkeypatch.setattr("student.export.main.open_labels", lambda data, grid: None)
    origin = made("demo", *TINY)

    def chosen(*overrides: str) -> list[list[tuple[int, int]]]:
        config = composed("data.root=d", "data.version=v", "data.train_split=train", *overrides)
        loaders = training_frames(origin, config.data, config.onnx.int8)
        return [[each.dataset.dataset.keyframes[place] for place in each.dataset.indices] for each in loaders]

    origin.config["data"] = {}
    ranges, judged = chosen("onnx.int8.frames=10")
    assert [scene for scene, _ in ranges] == list(range(10)) and judged == []
    ranges, judged = chosen("onnx.int8.frames=20", "onnx.int8.keep=null", "onnx.int8.judged=5")
    assert (len(ranges), len(judged)) == (20, 5)
    assert len({scene for scene, _ in judged}) == 5 and {scene for scene, _ in ranges} == set(range(10))
    assert not set(ranges) & set(judged)
    with pytest.raises(InputError, match="has 40 keyframes here, and ranges want 40, the choice of layers 5: lower"):
        chosen("onnx.int8.frames=40", "onnx.int8.keep=null", "onnx.int8.judged=5")
    monkeypatch.setattr(Towns, "keyframes", lambda towns, split: [])
    with pytest.raises(InputError, match="split train has 0 keyframes here, and ranges want 32: lower"):
        chosen()


@pytest.fixture(scope="module")
def fragile() -> Checkpoint:
    """A student of which a channel that counts for nothing has values of 10 000 before the last layers but one."""
    checkpoint = made("demo", *TINY)
    state = {name: value.clone() for name, value in checkpoint.state.items()}
    state["head.conv.1.bias"][0], state["head.conv.1.weight"][0] = 1e4, 0
    state["head.column.weight"][:, 0] = 0
    return replace(checkpoint, state=state)


def test_layers_that_8_bits_would_ruin_are_found(fragile: Checkpoint, tmp_path: Path):
    float32 = composed("onnx=float32").onnx
    write_onnx(fragile, float32, tmp_path / "float.onnx")
    model = onnx.load(tmp_path / "float.onnx")
    graph = Int8(model, [frame(seed, 1, 2) for seed in range(2)])
    assert {"lift.depth_and_context", "head.column", "encoder.backbone.conv_stem"} <= graph.layers.keys()
    assert named(graph.layers, ["head"]) == ["head.conv.0", "head.column", "head.logits"]
    for part in ("conv_p", "column.weight"):
        with pytest.raises(InputError, match=f"int8.keep names {part}, which is in no layer's name"):
            named(graph.layers, ["head", part])
    # one writes these values, the other reads them
    assert set(most_sensitive(graph, model, [frame(9, 1, 2)], changed=0.05)) == {"head.conv.0", "head.column"}


def test_without_data_ranges_cannot_be_measured():
    origin = made("demo", *TINY)
    origin.config["data"] = {}
    with pytest.raises(InputError, match="no checkpoint says where the data are: give data=demo"):
        training_frames(origin, composed().data, composed().onnx.int8)
