"""Labels at coarser resolutions, as files for other people's code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from workshop import Workshop

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D, VoxelGrid
from distill.nuscenes.pool_labels import MANIFEST, PooledLabels
from kernels.pooled_labels import pooled_labels

FREE = OCC3D_CLASSES.free


@pytest.fixture
def pooled(labelled, tmp_path):
    """Of the tiny dataroot."""
    return PooledLabels(tmp_path / "pooled", labelled[1], OCC3D_CLASSES)


def expected(file: Path, scale: int) -> np.ndarray:
    """Of a labels.npz."""
    labels = np.load(file)
    known_XYZ = np.where(labels["mask_camera"], labels["semantics"], np.uint8(255))
    return pooled_labels(torch.from_numpy(known_XYZ), scale, FREE).numpy()


def test_what_cameras_do_not_see_is_unknown(labelled, pooled):
    index, labels = labelled
    keyframe = index.keyframe("early")
    pooled.pool(keyframe, [2, 8])
    folder = pooled.folder / "scene-0002/early"
    assert {file.name for file in folder.iterdir()} == {"labels_1_2.npy", "labels_1_8.npy"}
    for scale, shape in ((2, (100, 100, 8)), (8, (25, 25, 2))):
        found = np.load(folder / f"labels_1_{scale}.npy")
        assert (found.dtype, found.shape) == (np.uint8, shape)
        np.testing.assert_array_equal(found, expected(labels.path(keyframe), scale))


def test_a_folder_says_what_it_holds(pooled):
    pooled.claim()
    said = json.loads((pooled.folder / MANIFEST).read_text())
    assert VoxelGrid.from_dict(said["grid"]) == OCC3D
    assert (said["unknown"], said["free"], said["classes"][4]) == (255, 17, "car")


def test_a_folder_of_other_labels_is_refused(pooled):
    pooled.claim()
    pooled.claim()  # again is no other
    with pytest.raises(InputError, match=r"the labels there are others than these: choose another output="):
        pooled._replace(classes=SURROUNDOCC_CLASSES).claim()


def test_a_folder_that_cannot_be_written_is_refused(pooled):
    pooled.folder.write_text("a file")
    with pytest.raises(InputError, match="cannot be read or written"):
        pooled.claim()


def test_the_program(copy: Workshop):
    """It writes what is not there, and counts what has no labels."""
    gts, folder = copy.folder / "data/demo/gts", copy.folder / "pooled/demo-occ3d"
    shutil.rmtree(gts / "demo-val-001")
    assert "pooled the labels of 4 keyframes, 0 were there, 2 have none" in copy.ok("occ-pool-labels")
    files = sorted(folder.glob("*/*/*.npy"))
    assert len(files) == 4 * 3
    for file in files:
        scale = int(file.stem.rpartition("_")[2])
        np.testing.assert_array_equal(
            np.load(file), expected(gts / file.relative_to(folder).parent / "labels.npz", scale)
        )

    files[0].unlink()
    before = {file: file.stat().st_mtime_ns for file in files[1:]}
    assert "pooled the labels of 1 keyframes, 3 were there, 2 have none" in copy.ok("occ-pool-labels")
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == before
    assert files[0].exists()
    assert "of 4 keyframes, 0 were there" in copy.ok("occ-pool-labels", "overwrite=true", "scales=[8]")

    refused = copy.refused("occ-pool-labels", "grid=surroundocc", "output=pooled/demo-occ3d")
    assert "the labels there are others than these" in refused
    shutil.rmtree(gts)
    assert "no keyframe of train, val has labels (looked for" in copy.refused("occ-pool-labels")
