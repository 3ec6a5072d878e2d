"""Folders of dumps as people have them: whose file is whose, known answers, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from workshop import Workshop

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.store import TeacherStore
from teacher_dump.asked import AskedFrame
from teacher_dump.border import ask
from teacher_dump.teachers.files.positions import tokens_of
from teacher_dump.teachers.files.teacher import FilesTeacher

A, B = "a" * 32, "b" * 32
SHAPE = (200, 200, 16)
USUAL = {
    "grid": "occ3d",
    "kind": None,
    "axes": None,
    "classes": "occ3d",
    "confidence": None,
    "key": None,
    "covered": None,
    "positions": None,
    "image_size": [32, 64],
}
HARD = {**USUAL, "confidence": 0.9}


def ids(number: int) -> np.ndarray:
    """A scene of which one voxel is occupied, by a class."""
    ids_XYZ = np.full(SHAPE, 17, np.uint8)
    ids_XYZ[number, 2, 3] = number
    return ids_XYZ


def probs(number: int) -> np.ndarray:
    """The same, float16 (C, X, Y, Z)."""
    return np.where(np.arange(18)[:, None, None, None] == ids(number), 0.66, 0.02).astype(np.float16)


def found(teacher: FilesTeacher, token: str) -> list[tuple[list[int], int]]:
    """Places and classes of what is occupied by what a teacher says of a keyframe."""
    given = teacher.read([SimpleNamespace(token=token)], 0)
    prediction = ask(teacher, AskedFrame(token=[token], given=[given]), OCC3D_CLASSES, torch.device("cpu"))
    semantics_XYZ = prediction.semantics(17)[0]
    return [(place, int(semantics_XYZ[tuple(place)])) for place in (semantics_XYZ != 17).nonzero().tolist()]


def is_(number: int) -> list[tuple[list[int], int]]:
    return [([number, 2, 3], number)]


def test_files_of_tokens_are_as_declared(tmp_path):
    np.savez_compressed(tmp_path / f"{A}.npz", occ=probs(4))
    np.save(tmp_path / f"{B}.npy", probs(5))
    teacher = FilesTeacher(str(tmp_path), "tokens", **{**USUAL, "kind": "probs", "axes": "CXYZ"})
    assert found(teacher, A) == is_(4)
    assert found(teacher, B) == is_(5)
    last = tmp_path / "last"
    last.mkdir()
    np.savez_compressed(last / f"{A}.npz", other=0, semantics=ids(6), logits=probs(6).transpose(1, 2, 3, 0) * 9)
    channels_last = {**USUAL, "kind": "logits", "axes": "XYZC"}
    assert found(FilesTeacher(str(last), "tokens", **{**channels_last, "key": "logits"}), A) == is_(6)
    ids_alone = {**HARD, "kind": "classes", "axes": "XYZ", "key": "semantics"}
    assert found(FilesTeacher(str(last), "tokens", **ids_alone), A) == is_(6)
    with pytest.raises(InputError, match=r"holds other, semantics, logits: say which by teacher\.key"):
        found(FilesTeacher(str(last), "tokens", **channels_last), A)
    with pytest.raises(InputError, match=r"a{32}\.npz: no prob in it, its keys are other"):
        found(FilesTeacher(str(last), "tokens", **{**channels_last, "key": "prob"}), A)
    with pytest.raises(
        InputError, match=r"a{32}\.npz: logits has the shape \(200, 200, 16, 18\): declared are the axes C"
    ):
        found(FilesTeacher(str(last), "tokens", **{**channels_last, "axes": "CXYZ", "key": "logits"}), A)


def test_what_was_not_modelled_says_nothing(tmp_path):
    covered = np.zeros(SHAPE, bool)
    covered[:5] = True
    for token, number in ((A, 4), (B, 6)):
        np.savez_compressed(tmp_path / f"{token}.npz", logits=probs(number), seen=covered)
    facts = {**USUAL, "kind": "probs", "axes": "CXYZ", "covered": "seen"}
    teacher = FilesTeacher(str(tmp_path), "tokens", **facts)
    assert (found(teacher, A), found(teacher, B)) == (is_(4), [])
    given = [teacher.read([SimpleNamespace(token=token)], 0) for token in (A, B)]
    prediction = teacher.predict(AskedFrame(token=[A, B], given=given))
    assert prediction.covered_BXYZ.sum().item() == 2 * covered.sum()


def test_predictions_of_sparseocc_and_flashocc(tmp_path):
    (tmp_path / "scene-0001" / B).mkdir(parents=True)
    np.savez_compressed(tmp_path / f"{A}.npz", pred=ids(4))
    np.savez_compressed(tmp_path / "scene-0001" / B / "pred.npz", pred=ids(5))
    teacher = FilesTeacher(str(tmp_path), "predictions", **HARD)
    assert (found(teacher, A), found(teacher, B)) == (is_(4), is_(5))
    with pytest.raises(InputError, match=r"teacher\.format=predictions: confidence=None: class ids say nothing of it"):
        FilesTeacher(str(tmp_path), "predictions", **USUAL)
    with pytest.raises(InputError, match=r"teacher\.kind=logits: format=predictions says that itself"):
        FilesTeacher(str(tmp_path), "predictions", **{**HARD, "kind": "logits"})


def test_sparse_output_of_opus(tmp_path):
    np.savez(tmp_path / f"{A}.npz", sem_pred=np.array([7]), occ_loc=np.array([[7, 2, 3]], np.int64))
    assert found(FilesTeacher(str(tmp_path), "sparse", **HARD), A) == is_(7)


@pytest.fixture
def dumped(tmp_path) -> Path:
    """A dump of the prototype's: two folders, voxels and columns."""
    for split, numbers in {"train": (4, 5), "val": (6,)}.items():
        (tmp_path / "dump" / split).mkdir(parents=True)
        for position, number in enumerate(numbers):
            stem = tmp_path / "dump" / split / f"{position:06d}_0"
            np.savez_compressed(f"{stem}_3d_logits_fp16.npz", logits=probs(number))
            np.savez_compressed(f"{stem}_bev_prob_fp16.npz", prob=np.zeros((18, 200, 200), np.float16))
    return tmp_path / "dump"


def test_positions_of_the_prototype_mean_what_its_lists_say(dumped, tmp_path, capsys):
    (tmp_path / "train.txt").write_text(f"{A}\n{B}\n")
    (tmp_path / "val.json").write_text(json.dumps(["c" * 32]))
    lists = {"train": str(tmp_path / "train.txt"), "val": str(tmp_path / "val.json")}
    prototype = {**USUAL, "kind": "probs"}
    teacher = FilesTeacher(str(dumped), "prototype", **{**prototype, "positions": lists})
    assert [found(teacher, token) for token in (A, B, "c" * 32)] == [is_(4), is_(5), is_(6)]
    assert "3 files of voxels" in (said := capsys.readouterr().out)
    assert "3 of columns (_bev_) are not read: bev is made of voxels" in said
    one = FilesTeacher(str(dumped / "val"), "prototype", **{**prototype, "positions": lists["train"]})
    assert found(one, A) == is_(6)  # the list is what says whose it is
    assert one.identity["positions"] != teacher.identity["positions"]
    for positions, told in (
        (None, "positions in a data loader, which mean nothing without the list"),
        ({**lists, "train": lists["val"]}, r"000001_0_3d_logits_fp16\.npz: .*val\.json lists 1 keyframes, none there"),
        ({"test": lists["val"]}, "no such folder"),
        (str(tmp_path / "nowhere.txt"), "cannot be read"),
        (lists["val"], "no file such as 000000_0_3d_logits_fp16"),
    ):
        with pytest.raises(InputError, match=told):
            FilesTeacher(str(dumped), "prototype", **{**prototype, "positions": positions})
    for file in (dumped / "val").glob("*_3d_*"):
        file.unlink()
    with pytest.raises(InputError, match="but 1 of columns alone, which cannot be taken back to voxels"):
        FilesTeacher(str(dumped / "val"), "prototype", **{**prototype, "positions": lists["val"]})


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_info_files_are_read_as_their_loaders_do_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    infos = tmp_path / "infos.pkl"
    # mmdet3d: by time
    frames = [{"token": A, "timestamp": 2, "pose": np.eye(4)}, {"token": B, "timestamp": 1, "size": np.float64(3)}]
    infos.write_bytes(pickle.dumps({"infos": frames, "metadata": {"version": "v1.0"}}))
    assert tokens_of(infos) == [B, A]
    # GaussianFormer: by scene token and number of the frame
    by_scene = {"s2": [{"token": A}], "s1": [{"token": f"{number}"} for number in range(12)]}
    keyframes = [("s2", 0), ("s1", 10), ("s1", 2)]
    infos.write_bytes(pickle.dumps({"infos": by_scene, "metadata": keyframes}))
    assert tokens_of(infos) == ["2", "10", A]
    for content, told in (
        (pickle.dumps({"infos": Harm()}), "posix.system, which is not read from files of others"),
        (pickle.dumps([date(2026, 1, 1)]), "datetime.date, which is not read"),
        (pickle.dumps({"infos": [{"token": A}]}), "is no list of keyframes .KeyError: 'timestamp'."),
        (b"nothing", "is no list of keyframes"),
    ):
        infos.write_bytes(content)
        with pytest.raises(InputError, match=told):
            tokens_of(infos)
    assert not (tmp_path / "harmed").exists()


def test_folders_that_hold_nothing_or_too_much(tmp_path):
    for folder in ("nowhere", "."):
        with pytest.raises(InputError, match="no predictions at"):
            FilesTeacher(str(tmp_path / folder), "predictions", **HARD)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{A}.npz").write_bytes(b"broken")
    with pytest.raises(InputError, match=f"one/{A}.npz and .*two/{A}.npz are about one keyframe"):
        FilesTeacher(str(tmp_path), "predictions", **HARD)
    with pytest.raises(InputError, match=rf"{A}\.npz: cannot be read"):
        found(FilesTeacher(str(tmp_path / "one"), "predictions", **HARD), A)


DUMP = (
    "gate.min_miou=1",
    "teacher=files",
    "teacher.name=theirs",
    "teacher.grid=occ3d",
    "store.path=stores/theirs.zarr",
)
HALF = ("teacher.format=predictions", "teacher.confidence=0.9", "teacher.folder=theirs")


def test_a_folder_is_dumped_watched_and_gone_on_with(copy: Workshop):
    """Several workers; absent files are counted at the start; a file that has changed under its name is noticed."""
    labels = sorted((copy.folder / "data/demo/gts").glob("*/*/labels.npz"))
    (copy.folder / "theirs").mkdir()
    for path in labels[1:]:
        with np.load(path) as file:
            np.savez_compressed(copy.folder / "theirs" / f"{path.parent.name}.npz", pred=file["semantics"])
    line = copy.refused("occ-dump", *DUMP, *HALF)
    assert "1 of 6 keyframes of train+val lack files: 1 are absent or empty (1 of the teacher)" in line
    printed = copy.ok("occ-dump", *DUMP, *HALF, "data.missing=skip", "dump.workers=2", "dump.batch_size=2")
    assert "5 files of voxels in" in printed
    assert "dumped 5 keyframes; teacher mIoU 100.00" in printed
    with np.load(labels[0]) as file:
        semantics_XYZ = file["semantics"]
    mine = copy.folder / "theirs" / f"{labels[0].parent.name}.npz"
    np.savez_compressed(mine, pred=semantics_XYZ)
    (copy.folder / "theirs").rename(copy.folder / "moved")
    moved = (*HALF[:2], "teacher.folder=moved")
    assert "dumped 1 keyframes" in copy.ok("occ-dump", *DUMP, *moved)
    store = TeacherStore(copy.folder / "stores/theirs.zarr")
    np.testing.assert_array_equal(store.semantics(labels[0].parent.name), semantics_XYZ)
    np.savez_compressed(copy.folder / "moved" / mine.name, pred=np.full_like(semantics_XYZ, 17))
    line = copy.refused("occ-dump", *DUMP, *moved)
    assert f"1 of the 6 keyframes in {store.path} were dumped from other files" in line
    assert "(first " + labels[0].parent.name + ": teacher's file)" in line
