import numpy as np
import pytest

from distill.errors import InputError
from distill.nuscenes.labels import no_labels, read_labels

SHAPE = (200, 200, 16)


def arrays(**changes):
    rng = np.random.default_rng(0)
    good = {
        "semantics": rng.integers(0, 18, SHAPE, dtype=np.uint8),
        "mask_lidar": rng.integers(0, 2, SHAPE, dtype=np.uint8),
        "mask_camera": rng.integers(0, 2, SHAPE, dtype=np.uint8),
    }
    return good | changes


def test_round_trip(tmp_path):
    stored = arrays()
    np.savez_compressed(tmp_path / "labels.npz", **stored)
    labels = read_labels(tmp_path / "labels.npz")
    assert labels["semantics"].dtype == np.uint8
    assert labels["mask_camera"].dtype == labels["mask_lidar"].dtype == bool
    for name, array in stored.items():
        np.testing.assert_array_equal(labels[name], array)


def test_no_file_means_unlabelled(tmp_path):
    assert read_labels(tmp_path / "labels.npz") is None
    stand_in = no_labels()
    assert (stand_in["semantics"] == 17).all()
    assert not stand_in["mask_camera"].any()
    assert not stand_in["mask_lidar"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantics": np.zeros((200, 16, 200), np.uint8)}, r"semantics is uint8 \(200, 16, 200\)"),
        ({"semantics": np.zeros(SHAPE, np.float32)}, "semantics is float32"),
        ({"semantics": np.full(SHAPE, 255, np.uint8)}, "semantics holds the value 255, the highest in Occ3D is 17"),
        ({"mask_camera": np.full(SHAPE, 2, np.uint8)}, "mask_camera holds the value 2"),
    ],
)
def test_wrong_array_is_named(tmp_path, changes, message):
    path = tmp_path / "labels.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)


def test_missing_array_is_named(tmp_path):
    path = tmp_path / "labels.npz"
    stored = arrays()
    del stored["mask_camera"]
    np.savez(path, **stored)
    with pytest.raises(InputError, match=r"no array 'mask_camera' \(it has semantics, mask_lidar\)"):
        read_labels(path)


@pytest.mark.parametrize("keep", [0, 100, 0.5, -30])
def test_damaged_file_is_named(tmp_path, keep):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"labels\.npz: cannot be read as Occ3D labels"):
        read_labels(path)


def test_flipped_bits_are_found(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[5000:5010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as Occ3D labels"):
        read_labels(path)


def test_real_label(real_data):
    labels = read_labels(real_data / "occ3d_label_scene-1077/labels.npz")
    # Below the car there is road, and no label of the road is far above it.
    road = labels["semantics"] == 11
    assert road[100:110, 98:102, :4].any(axis=2).mean() > 0.9
    assert not road[..., 12:].any()
    assert 0.05 < labels["mask_camera"].mean() < 0.3
