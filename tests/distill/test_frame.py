"""Every geometry against answers worked out by hand, and what walks the fields of a frame, however deep they lie."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from made import KIND, gaussians
from same import assert_same
from torch.utils.data import DataLoader, Dataset

from distill.frame import (
    FACT,
    GRID,
    IN_SENSOR,
    MOTION,
    PER_IMAGE,
    POINTS,
    POSE,
    RAYS,
    RECORDS,
    Array,
    Frame,
    Mirror,
    Record,
    Told,
    declared,
    stack,
)
from distill.signals.gaussians import GaussiansTold

X, Y, XY = Mirror(x=True), Mirror(y=True), Mirror(x=True, y=True)
NUMBERS_44 = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 1]]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Arrows(Record):
    """A record of a user's own: one arrow per column."""

    kind: ClassVar[str] = "arrows"

    columns: Array = declared(GRID)
    scale: Array = declared(FACT)


@dataclass(frozen=True)
class Everything(Record):
    """A field of every geometry."""

    fact: Array = declared(FACT)
    images: Array = declared(PER_IMAGE)
    pose: Array = declared(POSE)
    motion: Array = declared(MOTION)
    grid: Array = declared(GRID)
    points: Array = declared(POINTS)
    rays: Array = declared(RAYS)
    in_sensor: Array = declared(IN_SENSOR)
    named: Any = declared(RECORDS)
    others: Any = declared(RECORDS)


def array(values):
    return np.array(values, np.float32)


def everything(offset=0, points=2):
    """The same but for what is added to each number, and for the number of points."""
    arrows = Arrows(columns=array([[1, 2, 3], [4, 5, 6]]) + offset, scale=array(7) + offset)
    return Everything(
        fact=array([1, 2]) + offset,
        images=array([[[1, 2]], [[3, 4]]]) + offset,
        pose=array([NUMBERS_44, NUMBERS_44]) + offset,
        motion=array(NUMBERS_44) + offset,
        grid=array([[1, 2, 3], [4, 5, 6]]) + offset,
        points=array([[1, 2, 3, 0.5], [-4, 5, -6, 0]])[:points] + offset,
        rays=array([[1, 2, 3, 4, 5, 6, 7, 8], [-1, 2, 3, -4, 5, 6, 7, 8]])[:points] + offset,
        in_sensor=array([[1, 2, 3]])[:points] + offset,
        named={"arrows": arrows},
        others=(arrows, arrows),
    )


EXPECTED = {
    X: {
        "pose": [[-1, -2, -3, -4], [5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 1]],
        "motion": [[1, -2, -3, -4], [-5, 6, 7, 8], [-9, 10, 11, 12], [0, 0, 0, 1]],
        "grid": [[4, 5, 6], [1, 2, 3]],
        "points": [[-1, 2, 3, 0.5], [4, 5, -6, 0]],
        "rays": [[-1, 2, 3, -4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]],
    },
    Y: {
        "pose": [[1, 2, 3, 4], [-5, -6, -7, -8], [9, 10, 11, 12], [0, 0, 0, 1]],
        "motion": [[1, -2, 3, 4], [-5, 6, -7, -8], [9, -10, 11, 12], [0, 0, 0, 1]],
        "grid": [[3, 2, 1], [6, 5, 4]],
        "points": [[1, -2, 3, 0.5], [-4, -5, -6, 0]],
        "rays": [[1, -2, 3, 4, -5, 6, 7, 8], [-1, -2, 3, -4, -5, 6, 7, 8]],
    },
    XY: {
        "pose": [[-1, -2, -3, -4], [-5, -6, -7, -8], [9, 10, 11, 12], [0, 0, 0, 1]],
        "motion": [[1, 2, -3, -4], [5, 6, -7, -8], [-9, -10, 11, 12], [0, 0, 0, 1]],
        "grid": [[6, 5, 4], [3, 2, 1]],
        "points": [[-1, -2, 3, 0.5], [4, -5, -6, 0]],
        "rays": [[-1, -2, 3, -4, -5, 6, 7, 8], [1, -2, 3, 4, -5, 6, 7, 8]],
    },
}


@pytest.mark.parametrize("mirror", EXPECTED)
def test_every_geometry_is_mirrored_as_by_hand(mirror):
    before, found, expected = everything(), everything().mirrored(mirror), EXPECTED[mirror]
    for name in ("motion", "grid", "points", "rays"):
        np.testing.assert_array_equal(getattr(found, name), expected[name], err_msg=name)
    np.testing.assert_array_equal(found.pose, [expected["pose"]] * 2)
    for name in ("fact", "images", "in_sensor"):  # what a sensor saw, and what is so in every world
        assert_same(getattr(found, name), getattr(before, name), name)
    for arrows in (found.named["arrows"], *found.others):
        np.testing.assert_array_equal(arrows.columns, expected["grid"])
        assert arrows.scale == 7
    assert len(found.others) == 2


@pytest.mark.parametrize("mirror", EXPECTED)
def test_a_mirrored_batch_is_the_batch_of_mirrored_frames(mirror):
    records = [everything(), everything(offset=10, points=1), everything(offset=20)]
    assert_same(stack(records).mirrored(mirror), stack([record.mirrored(mirror) for record in records]))


@pytest.mark.parametrize("mirror", [Mirror(), *EXPECTED])
@pytest.mark.parametrize("record", [everything(), stack([everything(), everything(10, 1)])], ids=["frame", "batch"])
def test_mirrored_twice_is_as_before(record, mirror):
    assert_same(record.mirrored(mirror).mirrored(mirror), record)


@pytest.mark.parametrize("record", [everything(), stack([everything(), everything(10, 1)])], ids=["frame", "batch"])
def test_both_mirrors_are_one_after_the_other(record):
    assert_same(record.mirrored(X).mirrored(Y), record.mirrored(XY))


def test_what_is_mirrored_stays_as_it_was():
    record = everything()
    record.mirrored(XY)
    assert_same(record, everything())


def whole_frame(seed):
    """With teachers, one of them with a signal of a user's own, and a past that has a teacher, too."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def taught():
        signals = {
            "arrows": Arrows(columns=draw(4, 3, 2), scale=draw()),
            "gaussians": GaussiansTold(gaussians=gaussians(seed, 3, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))),
        }
        return {"stored": Told(taught=bool(seed % 2), covered=rng.random((4, 3, 2)) < 0.5, signals=signals)}

    def seen(name):
        return Frame(
            token=f"{name} {seed}",
            scene="scene-0001",
            channels=("LEFT", "RIGHT"),
            images=rng.integers(0, 256, (2, 3, 4, 8), dtype=np.uint8),
            intrinsics=draw(2, 3, 3),
            cam2ego=draw(2, 4, 4),
            lidar2ego=draw(4, 4),
            points=draw(5 + seed, 4),
            teachers=taught(),
        )

    past = tuple(replace(seen(name), ego2present=draw(4, 4)) for name in ("before", "long before"))
    labels = {"mask_camera": rng.random((4, 3, 2)) < 0.5, "mask_lidar": rng.random((4, 3, 2)) < 0.5}
    semantics = rng.integers(0, 18, (4, 3, 2), dtype=np.uint8)
    return replace(seen("now"), depth=draw(2, 1, 2), semantics=semantics, labelled=True, past=past, **labels)


class Frames(Dataset):
    """Made where they are asked for."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return whole_frame(index)


def tensors(value):
    """All tensors in it, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, each.name) for each in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in tensors(item)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("mirror", EXPECTED)
def test_teachers_and_the_past_are_mirrored_with_the_frame(mirror):
    frame = whole_frame(1)
    found = frame.mirrored(mirror)
    axes = [axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
    signs_4 = np.array([-1 if mirror.x else 1, -1 if mirror.y else 1, 1, 1])
    for was, now in zip((frame, *frame.past), (found, *found.past), strict=True):
        assert (now.token, now.scene) == (was.token, was.scene)
        np.testing.assert_array_equal(now.images, was.images)
        np.testing.assert_array_equal(now.cam2ego, signs_4[:, None] * was.cam2ego)
        np.testing.assert_array_equal(now.points, signs_4 * was.points)
        told, said = now.teachers["stored"], was.teachers["stored"]
        np.testing.assert_array_equal(told.covered, np.flip(said.covered, axes))
        np.testing.assert_array_equal(told.signals["arrows"].columns, np.flip(said.signals["arrows"].columns, axes))
        assert_same(told.signals["gaussians"], said.signals["gaussians"])
    batch = stack([whole_frame(index) for index in range(3)])
    assert_same(batch.mirrored(mirror), stack([whole_frame(index).mirrored(mirror) for index in range(3)]))
    assert_same(batch.mirrored(mirror).mirrored(mirror), batch)


@pytest.mark.parametrize("mirror", EXPECTED)
def test_the_way_from_a_camera_of_the_past_to_the_present_is_mirrored_as_a_whole(mirror):
    """Whatever a camera saw then is where a mirror puts it now."""
    frame = whole_frame(0)
    signs_4 = np.array([-1 if mirror.x else 1, -1 if mirror.y else 1, 1, 1])
    for was, now in zip(frame.past, frame.mirrored(mirror).past, strict=True):
        expected = signs_4[:, None] * (was.ego2present @ was.cam2ego)
        np.testing.assert_allclose(now.ego2present @ now.cam2ego, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_holds_what_its_frames_hold():
    frames = [whole_frame(index) for index in range(3)]
    batch = stack(frames)
    assert batch.is_batch and not frames[0].is_batch
    assert batch.token == ["now 0", "now 1", "now 2"]
    assert batch.channels == [("LEFT", "RIGHT")] * 3
    assert batch.labelled.tolist() == [True, True, True]
    assert batch.images.dtype == torch.uint8 and batch.mask_camera.dtype == torch.bool
    assert [len(points) for points in batch.points] == [5, 6, 7]
    assert len(batch.past) == 2
    assert batch.past[1].token == ["long before 0", "long before 1", "long before 2"]
    assert batch.past[1].depth is None
    told = batch.past[0].teachers["stored"]
    assert told.taught.tolist() == [False, True, False]
    assert told.signals["arrows"].scale.shape == (3,)
    kinds = [(said.form, len(said.means_G3)) for said in told.signals["gaussians"].gaussians]
    assert kinds == [(KIND.form, 3)] * 3
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(batch.points[index], frame.points)
        np.testing.assert_array_equal(batch.past[1].ego2present[index], frame.past[1].ego2present)
        arrows = frame.past[0].teachers["stored"].signals["arrows"]
        np.testing.assert_array_equal(told.signals["arrows"].columns[index], arrows.columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: replace(frame, depth=None), "depth"),
        (lambda frame: replace(frame, ego2present=np.eye(4)), "ego2present"),
        (lambda frame: replace(frame, teachers={}), "stored"),
        (lambda frame: replace(frame, teachers={**frame.teachers, "other": Told(taught=True)}), "other"),
        (lambda frame: replace(frame, teachers={"stored": Told(taught=True)}), "covered, signals"),
        (lambda frame: replace(frame, past=frame.past[:1]), "shorter|longer"),
    ],
)
def test_frames_that_hold_different_things_are_no_batch(change, message):
    """Whichever comes first: nothing is left behind."""
    for frames in ([whole_frame(0), change(whole_frame(1))], [change(whole_frame(0)), whole_frame(1)]):
        with pytest.raises(ValueError, match=message):
            stack(frames)


def test_to_moves_all_that_a_batch_holds():
    batch = stack([whole_frame(index) for index in range(2)])
    moved = batch.to(torch.device("meta"))
    assert len(tensors(moved)) == len(tensors(batch)) > 50
    assert all(tensor.is_meta for tensor in tensors(moved))
    assert (moved.token, moved.past[0].token) == (batch.token, batch.past[0].token)
    assert_same(batch.to(CPU), batch)


def test_pin_memory_pins_all_that_a_batch_holds(monkeypatch):
    """But Gaussians, which move by themselves."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    batch = stack([whole_frame(index) for index in range(2)])
    found = batch.pin_memory()
    without = [tensors(told.signals["gaussians"]) for told in (f.teachers["stored"] for f in (batch, *batch.past))]
    assert len(pinned) == len(tensors(batch)) - sum(map(len, without))
    assert_same(found, batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_loader_pins_and_a_gpu_gets_all():
    (batch,) = DataLoader(Frames(), batch_size=3, collate_fn=stack, pin_memory=True)
    assert batch.images.is_pinned() and batch.points[2].is_pinned()
    assert batch.past[1].teachers["stored"].signals["arrows"].columns.is_pinned()
    moved = batch.to(torch.device("cuda"))
    assert all(tensor.is_cuda for tensor in tensors(moved))
    assert_same(moved.to(CPU), stack([whole_frame(index) for index in range(3)]))


def test_frames_come_out_of_a_worker_as_they_went_in():
    (batch,) = DataLoader(Frames(), batch_size=3, num_workers=1, collate_fn=stack)
    assert_same(batch, stack([whole_frame(index) for index in range(3)]))
    loose = list(DataLoader(Frames(), batch_size=None, num_workers=1))
    for index, frame in enumerate(loose):
        assert_same(frame, whole_frame(index))


@pytest.mark.parametrize("record", [whole_frame(0), stack([whole_frame(0), whole_frame(1)])], ids=["frame", "batch"])
def test_a_frame_can_be_pickled(record):
    assert_same(pickle.loads(pickle.dumps(record)), record)


@pytest.mark.parametrize("bases", [(Record,), (Frame,), (Told,)])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"__annotations__": {"flow": Array}}, "Flow.flow declares no geometry: write flow: ... = declared"),
        ({"__annotations__": {"flow": "Array"}, "flow": None}, "Flow.flow declares no geometry"),
        ({"__annotations__": {"flow": Array}, "flow": field(default=None, kw_only=True)}, "Flow.flow declares no"),
        ({"flow": declared(GRID)}, "'flow' is a field but has no type annotation"),
    ],
)
def test_a_field_without_a_geometry_cannot_be_defined(bases, body, message):
    """Nor one without an annotation, which would be no field."""
    with pytest.raises(TypeError, match=message):
        dataclass(frozen=True)(type("Flow", bases, {"__module__": __name__, **body}))


def test_a_frame_with_more_fields_is_mirrored_and_stacked_with_them():
    @dataclass(frozen=True)
    class FlowFrame(Frame):
        flow: Array = declared(GRID)

    frames = [FlowFrame(token=name, flow=array([[1, 2], [3, 4]]) + k) for k, name in enumerate("ab")]
    np.testing.assert_array_equal(frames[0].mirrored(Y).flow, [[2, 1], [4, 3]])
    batch = stack(frames).mirrored(X)
    assert type(batch) is FlowFrame and batch.token == ["a", "b"]
    assert batch.flow.tolist() == [[[3, 4], [1, 2]], [[4, 5], [2, 3]]]


def test_fields_have_names_for_teachers_that_were_written_for_a_dict():
    frame = whole_frame(0)
    assert frame["images"] is frame.images
    assert frame["depth"] is frame.depth


def test_a_signal_that_holds_tensors_is_mirrored_as_one_that_holds_arrays():
    """What is a frame and what a batch is the frame's to say, not the kind of its parts'."""
    columns = array([[1, 2, 3], [4, 5, 6]])
    frames = [
        Frame(token="a", teachers={"t": Told(taught=True, signals={"arrows": Arrows(columns=values, scale=array(7))})})
        for values in (columns, torch.from_numpy(columns))
    ]
    batches = [stack([frame.mirrored(XY)]) for frame in frames]
    assert_same(batches[0], batches[1])
    assert batches[0].teachers["t"].signals["arrows"].columns.tolist() == [[[6, 5, 4], [3, 2, 1]]]
