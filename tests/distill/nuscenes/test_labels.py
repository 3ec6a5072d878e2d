import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.nuscenes.dataroot import open_labels
from distill.nuscenes.labels import Occ3DLabels, OpenOccLabels, SurroundOccLabels
from distill.store import TeacherStore
from distill.teaching.labels import TeacherLabels

SHAPE = (200, 200, 16)


@pytest.fixture
def keyframe(tmp_path):
    return SimpleNamespace(scene="s", token="t", lidar_path=tmp_path / "samples/LIDAR_TOP/a.pcd.bin")


@pytest.fixture
def path(tmp_path):
    """Where the Occ3D labels of `keyframe` belong."""
    (tmp_path / "s/t").mkdir(parents=True)
    return tmp_path / "s/t/labels.npz"


# --- Occ3D


def arrays(**changes):
    rng = np.random.default_rng(0)
    good = {
        "semantics": rng.integers(0, 18, SHAPE, dtype=np.uint8),
        "mask_lidar": rng.integers(0, 2, SHAPE, dtype=np.uint8),
        "mask_camera": rng.integers(0, 2, SHAPE, dtype=np.uint8),
    }
    return good | changes


def test_round_trip(tmp_path, keyframe, path):
    stored = arrays()
    np.savez_compressed(path, **stored)
    labels = Occ3DLabels(tmp_path).read(keyframe)
    assert labels["semantics"].dtype == np.uint8
    assert labels["mask_camera"].dtype == labels["mask_lidar"].dtype == bool
    for name, array in stored.items():
        np.testing.assert_array_equal(labels[name], array)


def test_no_file_means_unlabelled(tmp_path, keyframe):
    source = Occ3DLabels(tmp_path)
    assert source.read(keyframe) is None
    stand_in = source.unlabelled()
    assert (stand_in["semantics"] == 17).all()
    assert not stand_in["mask_camera"].any()
    assert not stand_in["mask_lidar"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantics": np.zeros((200, 16, 200), np.uint8)}, r"semantics is uint8 \(200, 16, 200\)"),
        ({"semantics": np.zeros(SHAPE, np.float32)}, "semantics is float32"),
        ({"semantics": np.ones(SHAPE, bool)}, "semantics is bool"),
        ({"mask_lidar": np.ones(SHAPE, np.int64)}, "mask_lidar is int64"),
        ({"semantics": np.full(SHAPE, 255, np.uint8)}, "semantics holds the value 255, the highest in Occ3D is 17"),
        ({"mask_camera": np.full(SHAPE, 2, np.uint8)}, "mask_camera holds the value 2"),
    ],
)
def test_wrong_array_is_named(tmp_path, keyframe, path, changes, message):
    np.savez(path, **arrays(**changes))
    with pytest.raises(InputError, match=message) as caught:
        Occ3DLabels(tmp_path).read(keyframe)
    assert str(path) in str(caught.value)


def test_missing_array_is_named(tmp_path, keyframe, path):
    stored = arrays()
    del stored["mask_camera"]
    np.savez(path, **stored)
    with pytest.raises(InputError, match=r"no array 'mask_camera' \(it has semantics, mask_lidar\)"):
        Occ3DLabels(tmp_path).read(keyframe)


@pytest.mark.parametrize("dtype", [np.uint8, bool])
@pytest.mark.parametrize("value", [0, 1])
def test_masks_may_be_boolean_and_empty(tmp_path, keyframe, path, dtype, value):
    np.savez(path, **arrays(mask_camera=np.full(SHAPE, value, dtype)))
    assert (Occ3DLabels(tmp_path).read(keyframe)["mask_camera"] == bool(value)).all()


def street(free):
    """A volume that is mostly free: a road, cars and trees above it."""
    rng = np.random.default_rng(0)
    semantics = np.full(SHAPE, free, np.uint8)
    semantics[..., 0] = 11
    semantics[..., 1] = rng.choice([4, 16, free], SHAPE[:2])
    return semantics


@pytest.mark.parametrize(
    ("semantics", "found"),
    [
        (np.where(street(17) == 0, 15, street(17) - 1).astype(np.uint8), "class 16 \\(vegetation\\)"),
        (street(16), "class 16 \\(vegetation\\)"),
        (street(0), "class 0 \\(others\\)"),
        ((street(17) != 17).astype(np.uint8), "class 0 \\(others\\)"),
        (np.zeros(SHAPE, np.uint8), "100% are class 0"),
    ],
    ids=["OpenOcc", "free is 16", "0 is empty", "binary", "zeros"],
)
def test_class_ids_of_another_convention_are_refused(tmp_path, keyframe, path, semantics, found):
    np.savez(path, **arrays(semantics=semantics))
    with pytest.raises(InputError, match=rf"labels\.npz: 0\.0% of the voxels are free .*({found}).*renumber") as caught:
        Occ3DLabels(tmp_path).read(keyframe)
    assert "\n" not in str(caught.value)


def test_a_street_and_the_inside_of_a_garage_are_labels(tmp_path, keyframe, path):
    garage = street(17)
    garage[..., 6:] = 15  # everything above the ceiling is "manmade"
    garage[:60] = 16
    for semantics in (street(17), garage):
        np.savez(path, **arrays(semantics=semantics))
        assert Occ3DLabels(tmp_path).read(keyframe) is not None


def write_members(**members):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    return write


def write_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize(
    "write",
    [
        write_array,
        lambda path: path.write_bytes(pickle.dumps({"semantics": 1})),
        lambda path: np.savez(path, **arrays(semantics=np.array([None, {}], dtype=object))),
        write_members(semantics=b"text", mask_camera=b"", mask_lidar=b""),
        write_members(semantics=b"\x93NUMPY\x01\x00\x10\x00{'descr': broken\n"),
        lambda path: path.write_text("<html>not found</html>"),
        lambda path: path.mkdir(),
    ],
    ids=["npy", "pickle", "objects", "text", "header", "html", "folder"],
)
def test_foreign_content_is_named(tmp_path, keyframe, path, write):
    write(path)
    with pytest.raises(InputError, match=r"labels\.npz: ") as caught:
        Occ3DLabels(tmp_path).read(keyframe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 0.5, -30])
def test_damaged_file_is_named(tmp_path, keyframe, path, keep):
    np.savez_compressed(path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"labels\.npz: cannot be read as Occ3D labels"):
        Occ3DLabels(tmp_path).read(keyframe)


def test_flipped_bits_are_found(tmp_path, keyframe, path):
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[5000:5010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as Occ3D labels"):
        Occ3DLabels(tmp_path).read(keyframe)


def test_real_label(real_data, tmp_path, keyframe, path):
    path.symlink_to(real_data / "occ3d_label_scene-1077/labels.npz")
    labels = Occ3DLabels(tmp_path).read(keyframe)
    # Below the car there is road, and no label of the road is far above it.
    road = labels["semantics"] == 11
    assert road[100:110, 98:102, :4].any(axis=2).mean() > 0.9
    assert not road[..., 12:].any()
    assert 0.05 < labels["mask_camera"].mean() < 0.3


# --- SurroundOcc


def read_rows(root, keyframe, rows):
    (root / "samples").mkdir(exist_ok=True)
    np.save(root / "samples/a.pcd.bin.npy", rows)
    return SurroundOccLabels(root).read(keyframe)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["uint8", "int32", "int64", "float32"]))
def test_surroundocc_rows_become_voxels(tmp_path, keyframe, seed, dtype):
    rng = np.random.default_rng(seed)
    places = rng.choice(200 * 200 * 16, rng.integers(1, 500), replace=False)
    rows = np.column_stack([*np.unravel_index(places, SHAPE), rng.integers(0, 17, len(places))])
    labels = read_rows(tmp_path, keyframe, rows.astype(dtype))
    expected = np.full(SHAPE, 17, np.uint8)
    for x, y, z, class_id in rows:
        expected[x, y, z] = class_id
    assert labels["semantics"].dtype == np.uint8
    np.testing.assert_array_equal(labels["semantics"], expected)
    for mask in ("mask_camera", "mask_lidar"):
        assert labels[mask].dtype == bool
        np.testing.assert_array_equal(labels[mask], expected != 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2, 3]], r"int64 \(1, 3\), SurroundOcc labels are whole numbers \(voxels, 4\)"),
        ([1, 2, 3, 4], r"int64 \(4,\)"),
        (np.zeros((0, 4), int), r"int64 \(0, 4\)"),
        (np.zeros((2, 4), bool), "bool"),
        ([[1, 2, 3, 4], [200, 0, 0, 4]], r"row 1 is \[200, 0, 0, 4\]"),
        ([[1, 2, 16, 4]], r"row 0 is \[1, 2, 16, 4\]"),
        ([[1, 2, 3, 18]], r"from 0 to \[199, 199, 15, 17\]"),
        ([[1, 2, 3, 4], [1, -1, 3, 4]], r"row 1 is \[1, -1, 3, 4\]"),
        ([[1, 2, 3.5, 4]], r"row 0 is \[1.0, 2.0, 3.5, 4.0\]"),
        ([[1, 2, np.nan, 4]], "row 0 is"),
    ],
)
def test_wrong_surroundocc_rows_are_named(tmp_path, keyframe, rows, message):
    with pytest.raises(InputError, match=rf"a\.pcd\.bin\.npy: .*{message}") as caught:
        read_rows(tmp_path, keyframe, np.array(rows))
    assert "\n" not in str(caught.value)


def test_surroundocc_rows_of_another_convention_are_refused(tmp_path, keyframe):
    """A dense list of all voxels in which 0 is empty space."""
    x, y, z = np.indices(SHAPE, np.uint8).reshape(3, -1)
    with pytest.raises(InputError, match=r"a\.pcd\.bin\.npy: 0\.0% of the voxels are free .* class 0 \(noise\)"):
        read_rows(tmp_path, keyframe, np.column_stack([x, y, z, street(0).ravel()]))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 an archive", None], ids=["empty", "archive", "cut"])
def test_damaged_surroundocc_file_is_named(tmp_path, keyframe, content):
    read_rows(tmp_path, keyframe, np.ones((50, 4), int))
    file = tmp_path / "samples/a.pcd.bin.npy"
    file.write_bytes(file.read_bytes()[:-8] if content is None else content)
    with pytest.raises(InputError, match=r"a\.pcd\.bin\.npy: cannot be read as SurroundOcc labels"):
        SurroundOccLabels(tmp_path).read(keyframe)


def test_a_keyframe_without_surroundocc_file_is_unlabelled(tmp_path, keyframe):
    (tmp_path / "samples").mkdir()
    for source in (SurroundOccLabels(tmp_path), SurroundOccLabels(None)):
        assert source.read(keyframe) is None
        assert (source.unlabelled()["semantics"] == 17).all()
        assert not source.unlabelled()["mask_camera"].any()
    assert SurroundOccLabels(None).path(keyframe) is None


# --- OpenOcc v2


def test_openocc_is_renumbered_and_seen_everywhere(tmp_path, keyframe, path):
    """By the order of its classes, written down here once more; flow is not looked at."""
    vehicles = ("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle")
    ground = ("driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation", "free")
    theirs = (*vehicles, "pedestrian", "traffic_cone", "barrier", *ground)
    ids = np.random.default_rng(0).integers(0, 17, SHAPE, dtype=np.uint8)
    ids[:, :, 8:] = 16
    np.savez(path, semantics=ids, flow=np.zeros((2, 2), np.float16))
    labels = OpenOccLabels(tmp_path).read(keyframe)
    assert labels["semantics"].dtype == np.uint8
    for number, name in enumerate(theirs):
        assert np.unique(labels["semantics"][ids == number]).tolist() == [OCC3D_CLASSES.names.index(name)]
    assert labels["mask_camera"].all() and labels["mask_lidar"].all()
    assert OpenOccLabels(tmp_path).unlabelled()["semantics"].max() == 17


def test_occ3d_and_openocc_are_not_taken_for_each_other(tmp_path, keyframe, path):
    ids = np.full(SHAPE, 17, np.uint8)
    ids[:, :, 0] = 11
    np.savez(path, semantics=ids, mask_camera=ids > 0, mask_lidar=ids > 0)
    with pytest.raises(InputError, match="semantics holds the value 17, the highest in OpenOcc v2 is 16"):
        OpenOccLabels(tmp_path).read(keyframe)
    np.savez(path, semantics=np.where(ids == 17, 16, 10).astype(np.uint8), mask_camera=ids > 0, mask_lidar=ids > 0)
    with pytest.raises(InputError, match=r"class ids of another convention.*data\.labels=openocc"):
        Occ3DLabels(tmp_path).read(keyframe)
    assert (OpenOccLabels(tmp_path).read(keyframe)["semantics"] == ids).all()
    np.savez(path, semantics=np.full(SHAPE, 10, np.uint8))
    with pytest.raises(InputError, match=r"as OpenOcc's labels \(free = 16\), .*another convention"):
        OpenOccLabels(tmp_path).read(keyframe)


def test_arrays_of_panoptic_labels_are_not_looked_at(tmp_path, keyframe, path):
    stored = arrays()
    np.savez(path, **stored, instances=np.zeros(SHAPE, np.uint8), instance_class_ids=np.arange(3))
    labels = Occ3DLabels(tmp_path).read(keyframe)
    assert labels.keys() == stored.keys()


def test_labels_lie_where_the_index_says(tmp_path, keyframe):
    np.savez(tmp_path / "mine.npz", **arrays())
    keyframe.labels = tmp_path / "mine.npz"
    assert Occ3DLabels(None).read(keyframe) is not None
    assert Occ3DLabels(tmp_path / "elsewhere").read(keyframe) is None
    keyframe.labels = None
    assert (Occ3DLabels(None).path(keyframe), Occ3DLabels(None).read(keyframe)) == (None, None)


# --- a teacher's store


def test_what_a_teacher_says_stands_for_labels_where_its_images_show_it(workshop):
    store = TeacherStore(workshop.folder / "stores/demo-fusion-occ3d.zarr")
    labels = TeacherLabels(workshop.folder / "stores/demo-fusion-occ3d.zarr", OCC3D, OCC3D_CLASSES)
    token = store.tokens[0]
    found = labels.read(SimpleNamespace(token=token))
    seen = store.told(token, ["seen"], coverage=False).signals["seen"].seen
    np.testing.assert_array_equal(found["mask_camera"], seen)
    np.testing.assert_array_equal(found["semantics"][seen], store.semantics(token)[seen])
    assert labels.path(SimpleNamespace(token=token)).stat().st_size > 0
    stranger = SimpleNamespace(token="stranger")
    assert (labels.path(stranger), labels.read(stranger)) == (None, None)
    with pytest.raises(InputError, match="is on grid occ3d, labels are wanted on surroundocc"):
        TeacherLabels(store.path, SURROUNDOCC, SURROUNDOCC_CLASSES)


# --- which labels belong to a grid


def test_the_grid_chooses_the_labels(tmp_path):
    data = OmegaConf.create({"root": str(tmp_path), "labels": None, "labels_folder": "gts", "surroundocc": "labels"})
    assert open_labels(data, OCC3D).root == tmp_path / "gts"
    data.labels_folder = "occ3d_panoptic"
    assert open_labels(data, OCC3D).root == tmp_path / "occ3d_panoptic"
    data.labels_folder = None
    assert open_labels(data, OCC3D).root is None
    data.labels = "openocc"
    assert isinstance(open_labels(data, OCC3D), OpenOccLabels)
    with pytest.raises(InputError, match="OpenOcc's labels are not on grid surroundocc"):
        open_labels(data, SURROUNDOCC)
    data.labels = None
    with pytest.raises(InputError, match=r"no SurroundOcc labels at .*/labels/samples: .*data\.surroundocc"):
        open_labels(data, SURROUNDOCC)
    (tmp_path / "labels/samples").mkdir(parents=True)
    assert open_labels(data, SURROUNDOCC).root == tmp_path / "labels"
    data.surroundocc = str(tmp_path / "labels")
    assert open_labels(data, SURROUNDOCC).root == tmp_path / "labels"
    data.surroundocc = None
    assert open_labels(data, SURROUNDOCC).grid == SURROUNDOCC
    with pytest.raises(InputError, match="grid other"):
        open_labels(data, VoxelGrid("other", "ego", (0.0, 0.0, 0.0), 1.0, (2, 2, 2)))
