"""The CVPR-2023 challenge's layout of a demo world is, but for the LiDAR, the demo world."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion
from workshop import SMALL_STUDENT, Workshop

from distill.errors import InputError
from distill.nuscenes.challenge import load_challenge
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import KeyframeIndex, load_index
from distill.nuscenes.inventory import take_stock
from distill.nuscenes.labels import Occ3DLabels, SurroundOccLabels

SIZE = (320, 180)


def placed(pose: np.ndarray) -> dict:
    rotation = Quaternion(matrix=pose[:3, :3], rtol=1e-6, atol=1e-6).elements.tolist()
    return {"translation": pose[:3, 3].tolist(), "rotation": rotation}


def written(index: KeyframeIndex, root: Path) -> dict:
    """What is in annotations.json; the images and labels are copied to `root`."""
    infos: dict[str, dict] = {}
    for keyframe in reversed(list(index.keyframes("all"))):
        cameras = {}
        for camera in keyframe.cameras:
            file = f"{camera.channel}/{camera.path.name}"
            (root / "imgs" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(camera.path, root / "imgs" / file)
            cameras[f"{keyframe.token}-{camera.channel}"] = {
                "img_path": file if camera.channel == "CAM_BACK" else f"imgs/{file}",
                "intrinsic": camera.intrinsics.tolist(),
                "extrinsic": placed(camera.cam2ego),
                "ego_pose": placed(camera.ego2global),
            }
        infos.setdefault(keyframe.scene, {})[keyframe.token] = {
            "timestamp": str(keyframe.timestamp),
            "camera_sensor": cameras,
            "ego_pose": placed(keyframe.ego2global),
            "gt_path": f"gts/{keyframe.scene}/{keyframe.token}/labels.npz",
            # as it documents them: each is the other
            "next": keyframe.previous or "EOF",
            "prev": keyframe.next or "EOF",
        }
    shutil.copytree(index.root / "gts", root / "gts")
    scenes = {split: list(dict.fromkeys(index.keyframes(split).scenes)) for split in ("train", "val")}
    return {**{f"{split}_split": names for split, names in scenes.items()}, "scene_infos": infos}


@pytest.fixture(scope="module")
def worlds(workshop: Workshop, tmp_path_factory):
    """The index of a demo world, and its annotations in a folder of their own."""
    index = load_index(workshop.folder / "data/demo", "v1.0-demo", workshop.folder / "cache")
    root = tmp_path_factory.mktemp("challenge") / "trainval"
    annotations = written(index, root)
    (root / "annotations.json").write_text(json.dumps(annotations))
    return index, root, annotations


def test_it_is_the_demo_world_without_lidar(worlds, tmp_path):
    nuscenes, root, _ = worlds
    index = load_challenge(root, SIZE, tmp_path)
    assert (index.tokens, index.scenes, index.splits) == (nuscenes.tokens, nuscenes.scenes, nuscenes.splits)
    assert index.channels == nuscenes.channels
    for ours, theirs in zip(index.keyframes("all"), nuscenes.keyframes("all"), strict=True):
        assert (ours.previous, ours.next, ours.timestamp) == (theirs.previous, theirs.next, theirs.timestamp)
        assert (ours.lidar_path, ours.lidar2ego) == (None, None)
        np.testing.assert_allclose(ours.cam2ego(), theirs.cam2ego(), atol=1e-6)


def test_frames_and_labels_are_those_of_the_demo_world(worlds, tmp_path):
    nuscenes, root, _ = worlds
    ours, theirs = (
        FrameDataset(index.keyframes("val"), (64, 160), None, False, labels, None, seed=0, history=1)[1]
        for index, labels in (
            (load_challenge(root, SIZE, tmp_path), Occ3DLabels(None)),
            (nuscenes, Occ3DLabels(nuscenes.root / "gts")),
        )
    )
    assert ours.labelled
    for name in ("images", "semantics", "mask_camera", "mask_lidar"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_allclose(ours.past[0].ego2present, theirs.past[0].ego2present, atol=1e-5)


def test_half_a_download_is_counted(worlds, tmp_path):
    _, root, _ = worlds
    half = tmp_path / "half"
    shutil.copytree(root, half)
    index = load_challenge(half, SIZE, tmp_path)
    first, second = list(index.keyframes("val"))[:2]
    first.cameras[2].path.unlink()
    second.labels.unlink()
    stock = take_stock(index.keyframes("val"), Occ3DLabels(None), 17, cameras=True, lidar=False)
    assert stock.left_out == {first.token: {first.cameras[2].path: "CAM_FRONT_RIGHT"}}
    assert second.token not in stock.labelled
    assert SurroundOccLabels(None).path(first) is None


def test_programs_take_it(worlds, workshop: Workshop):
    """What is dumped, learned and scored without LiDAR; who wants it is told that there is none, and what to do."""
    _, root, _ = worlds
    at = ["data=challenge", f"data.root={root}", "data.image_size=[320,180]", "data.cache_dir=cache"]
    told = workshop.ok("occ-pool-labels", *at, "output=pooled/challenge", "scales=[8]")
    assert "pooled the labels of 6 keyframes" in told  # where gt_path says that they are
    fusion = "teacher.checkpoint=pkg://teacher_dump/weights/fusion_demo.safetensors"
    assert workshop.refused("occ-dump", *at, fusion).endswith(
        "6 of 6 keyframes of train+val have no LiDAR scan, which is asked for; get them; it is fusion that looks at "
        "scans: choose a teacher= that looks at cameras alone"
    )
    weights = "teacher.checkpoint=pkg://student/weights/demo_student.safetensors"
    dumped = workshop.ok("occ-dump", *at, "teacher=checkpoint", "teacher.name=small", weights, "dump.splits=[train]")
    assert "challenge-small-occ3d.zarr: 2 of 6 keyframes" in dumped
    train = [*at, *SMALL_STUDENT, "teachers.stored.paths=[stores/challenge-small-occ3d.zarr]"]
    refused = workshop.refused("occ-train-student", *train, "output=runs/challenge")
    assert refused.endswith("get them; LiDAR is for depth alone: objective.terms.depth.weight=0 trains without")
    learned = workshop.ok(
        "occ-train-student", *train, "output=runs/challenge", "objective.terms.depth.weight=0", "trainer.epochs=1"
    )
    assert "2 (small " in learned
    scored = workshop.ok("occ-eval", "checkpoint=runs/challenge/best.pt", "max_samples=1", "pictures=[]", "cost.runs=1")
    assert "the data have no LiDAR: the rays of RayIoU begin amidst the cameras" in scored
    assert "1 keyframes of challenge val" in scored


def changed(annotations: dict, change) -> dict:
    copied = json.loads(json.dumps(annotations))
    scene = next(iter(copied["scene_infos"].values()))
    info = next(iter(scene.values()))
    change(copied, info, next(iter(info["camera_sensor"].values())))
    return copied


FAULTS = {
    "no rotation": (lambda all_, info, camera: info["ego_pose"].update(rotation=[2, 0, 0, 0]), "no rotation"),
    "no camera": (lambda all_, info, camera: info.update(camera_sensor={}), "camera_sensor of record .* is empty"),
    "no time": (lambda all_, info, camera: info.update(timestamp="noon"), "timestamp of record .* is 'noon'"),
    "no pinhole": (lambda all_, info, camera: camera.update(intrinsic=[[1, 0], [0, 1]]), "intrinsic .* 3 x 3"),
    "another image": (lambda all_, info, camera: camera.update(intrinsic=np.diag([9, 9, 1]).tolist()), "320x180"),
    "far away": (lambda all_, info, camera: camera["ego_pose"].update(translation=[9e5, 0, 0]), "m from the vehicle"),
    "twice": (lambda all_, info, camera: info["camera_sensor"].update(other=camera), "of two images in the folder"),
    "no scenes": (lambda all_, info, camera: all_.update(scene_infos={}), "no keyframe is in scene_infos"),
    "no infos": (lambda all_, info, camera: all_.update(scene_infos=[]), "scene_infos is no mapping"),
    "odd split": (lambda all_, info, camera: all_.update(train_split="a"), "train_split .* not a list of scene names"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(worlds, tmp_path, fault):
    change, message = FAULTS[fault]
    (tmp_path / "annotations.json").write_text(json.dumps(changed(worlds[2], change)))
    with pytest.raises(InputError, match=rf"annotations\.json: .*{message}"):
        load_challenge(tmp_path, SIZE, tmp_path / "cache")


def test_a_folder_without_annotations_names_the_value(tmp_path):
    with pytest.raises(InputError, match=r"no annotations\.json in .*data\.root="):
        load_challenge(tmp_path, SIZE, tmp_path)
