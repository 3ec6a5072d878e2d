"""What is missing is counted and said; what a keyframe's files are is known wherever they lie."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D
from distill.nuscenes.index import load_index
from distill.nuscenes.inventory import SOURCES, Inventory, settle_missing, summary, take_stock
from distill.nuscenes.labels import Occ3DLabels

FREE = OCC3D_CLASSES.free
VERSION = "v1.0-tiny"


def label(root: Path, token: str, scene: str, visible: float = 0.5) -> Path:
    path = root / "gts" / scene / token / "labels.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    semantics = np.full(OCC3D.shape, FREE, np.uint8)
    semantics[:, :, :4] = 11
    mask = np.zeros(OCC3D.shape, np.uint8)
    mask[: int(visible * 200)] = 1
    np.savez_compressed(path, semantics=semantics, mask_camera=mask, mask_lidar=mask)
    return path


def stock_of(root: Path, split: str = "all", lidar: bool = True, history: int = 0) -> Inventory:
    index = load_index(root, VERSION, root.parent / "cache", 5)
    labels = Occ3DLabels(root / "gts")
    return take_stock(index.keyframes(split), labels, FREE, cameras=True, lidar=lidar, history=history)


def test_everything_there(dataroot):
    label(dataroot, "alone", "scene-0001")
    stock = stock_of(dataroot)
    assert stock.keyframes.tokens == ["alone", "early", "late"]
    assert stock.left_out == {}
    assert stock.labelled == {"alone"}
    assert stock.masks.tolist() == [[100 * 200 * 16, 100 * 200 * 12]]
    assert all(stock.digests["alone"])
    assert [source for source, digest in zip(SOURCES, stock.digests["late"], strict=True) if not digest] == ["labels"]


@pytest.mark.parametrize("how", ["absent", "empty"])
def test_missing_files_are_counted_listed_and_left_out_or_refused(dataroot, tmp_path, capsys, how):
    lost = [dataroot / "samples/CAM_BACK/late.jpg", dataroot / "samples/LIDAR_TOP/late.pcd.bin"]
    for path in lost:
        path.unlink() if how == "absent" else path.write_bytes(b"")
    splits = {"train": stock_of(dataroot, "train"), "val": stock_of(dataroot, "val")}
    assert splits["train"].keyframes.tokens == ["early"]
    assert splits["val"].keyframes.tokens == ["alone"]
    listing = tmp_path / "missing_files.txt"
    with pytest.raises(InputError, match=r"1 of 2 keyframes of train lack files: 2 .*data.missing=skip"):
        settle_missing(splits, "error", listing)
    assert listing.read_text().splitlines() == [str(path) for path in lost]
    settle_missing(splits, "skip", listing)
    assert "left out: 1 of 2 keyframes of train" in capsys.readouterr().out


def test_whoever_looks_back_needs_the_images_of_the_past(dataroot, tmp_path, capsys):
    """Of "late", in whose scene "early" comes before it; scans of the past are nobody's business."""
    lost = dataroot / "samples/CAM_BACK/early.jpg"
    lost.unlink()
    (dataroot / "samples/LIDAR_TOP/early.pcd.bin").unlink()
    assert stock_of(dataroot, lidar=False).keyframes.tokens == ["alone", "late"]
    stock = stock_of(dataroot, lidar=False, history=2)
    assert stock.keyframes.tokens == ["alone"]
    assert stock.left_out == {"early": {lost: "CAM_BACK"}, "late": {lost: "CAM_BACK"}}
    settle_missing({"all": stock}, "skip", tmp_path / "missing_files.txt")
    assert "left out: 2 of 3 keyframes of all lack files: 1 are absent or empty" in capsys.readouterr().out


def test_an_empty_label_file_is_a_missing_one_and_no_keyframe_without_labels(dataroot, tmp_path):
    empty = label(dataroot, "late", "scene-0002")
    empty.write_bytes(b"")
    stock = stock_of(dataroot)
    assert stock.left_out == {"late": {empty: "labels"}}
    assert stock.keyframes.tokens == ["alone", "early"]
    with pytest.raises(
        InputError, match=r"1 of 3 keyframes of all lack files: 1 are absent or empty \(1 labels\).*=skip$"
    ):
        settle_missing({"all": stock}, "error", tmp_path / "missing_files.txt", "; scans are not needed")


def test_scans_are_not_missed_where_nobody_needs_them(dataroot):
    shutil.rmtree(dataroot / "samples/LIDAR_TOP")
    assert len(stock_of(dataroot, lidar=True).left_out) == 3
    assert stock_of(dataroot, lidar=False).left_out == {}


def test_the_identity_survives_moving_the_files(dataroot, tmp_path):
    label(dataroot, "alone", "scene-0001")
    before = stock_of(dataroot)
    moved = Path(shutil.move(dataroot, tmp_path / "elsewhere"))
    for path in moved.rglob("*.jpg"):
        path.touch()
    assert stock_of(moved).identity(SOURCES) == before.identity(SOURCES)


def recompressed(path: Path) -> None:
    image = Image.open(path)
    image.load()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    path.write_bytes(buffer.getvalue())


def in_place(path: Path) -> None:
    """Other points in a scan of the same size."""
    path.write_bytes(np.fromfile(path, np.float32)[::-1].tobytes())


def shift(row: int):
    """Move what a table's record says along x."""

    def move(rows: list[dict]) -> None:
        rows[row]["translation"][0] += 7.0

    return move


@pytest.mark.parametrize(
    ("change", "source"),
    [
        (lambda root, edit: recompressed(root / "samples/CAM_FRONT/early.jpg"), "CAM_FRONT"),
        (lambda root, edit: in_place(root / "samples/LIDAR_TOP/early.pcd.bin"), "LIDAR_TOP"),
        (lambda root, edit: edit("calibrated_sensor", shift(1)), "calibration"),
        (lambda root, edit: edit("ego_pose", shift(7)), None),
        (lambda root, edit: label(root, "early", "scene-0002", visible=0.25), "labels"),
    ],
)
def test_other_files_under_the_same_tokens_are_other_data(dataroot, edit, change, source):
    label(dataroot, "early", "scene-0002")
    before = stock_of(dataroot, "train")
    change(dataroot, edit)
    after = stock_of(dataroot, "train")
    changed = {
        name
        for token in before.keyframes.tokens
        for name, one, other in zip(SOURCES, before.digests[token], after.digests[token], strict=True)
        if one != other
    }
    # the eighth pose is that of another keyframe's scan, in the other split
    assert changed == ({source} if source else set())
    assert (before.identity(SOURCES) == after.identity(SOURCES)) == (source is None)


def test_the_summary_shows_masks_beside_those_of_occ3d(dataroot):
    label(dataroot, "early", "scene-0002", visible=0.25)
    label(dataroot, "late", "scene-0002", visible=0)
    stock = stock_of(dataroot, "train")
    table = summary({"train": stock}, Occ3DLabels(dataroot / "gts"), {"with a teacher": {"train": "7"}})
    (head, row, reference) = (line.split("  ") for line in table.splitlines())
    told = dict(zip(filter(None, map(str.strip, head)), filter(None, map(str.strip, row)), strict=True))
    assert told == {
        "split": "train",
        "keyframes": "2",
        "whole": "2",
        "labelled": "2",
        "with a teacher": "7",
        "visible voxels": "12.5%",
        "free of visible": "75.0%",
        "empty masks": "1 of 2 looked at",
    }
    assert [cell.strip() for cell in reference if cell.strip()] == ["(Occ3D train)", "13.6%", "77.5%"]


def test_absent_cameras_are_said(dataroot):
    rows = json.loads((dataroot / VERSION / "sample_data.json").read_text())
    kept = [row for row in rows if row["token"] != "late-CAM_BACK"]
    (dataroot / VERSION / "sample_data.json").write_text(json.dumps(kept))
    stock = stock_of(dataroot, "train")
    assert stock.left_out == {}
    assert "1 of 2 keyframes of train have no CAM_BACK" in summary({"train": stock}, Occ3DLabels(dataroot / "gts"), {})


@pytest.mark.parametrize(("visible", "said"), [(0.25, 0), (1, 1), (0.01, 1)])
def test_masks_unlike_those_of_occ3d_are_said(dataroot, visible, said):
    label(dataroot, "early", "scene-0002", visible)
    table = summary({"train": stock_of(dataroot, "train")}, Occ3DLabels(dataroot / "gts"), {})
    assert table.count("suspicious: mask_camera of train holds") == said


def test_labels_without_free_space_in_view_are_said(dataroot):
    path = label(dataroot, "early", "scene-0002")
    with np.load(path) as file:
        labels = dict(file)
    labels["mask_camera"] = (labels["semantics"] != FREE).astype(np.uint8)
    np.savez_compressed(path, **labels)
    table = summary({"train": stock_of(dataroot, "train")}, Occ3DLabels(dataroot / "gts"), {})
    assert "suspicious: 0.0% of the visible voxels of train are free" in table


def test_keyframes_in_two_splits_are_said(dataroot):
    splits = {"train": stock_of(dataroot, "all"), "val": stock_of(dataroot, "val")}
    table = summary(splits, Occ3DLabels(dataroot / "gts"), {})
    assert "1 keyframes are in both train and val" in table
