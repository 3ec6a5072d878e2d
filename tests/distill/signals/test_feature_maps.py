"""A teacher's BEV features: said, kept within half a step, mirrored, asked, and refused where there are none."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, Mirror, stack
from distill.grids import VoxelGrid
from distill.networks.prediction import FeatureKind, FeatureMap, Occupancy
from distill.signals import TeacherPrediction, described
from distill.signals.features import MAX_ERROR_STEPS, Features, VoxelFeatures, encode_features
from distill.signals.seen import Seen
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.teaching.stored import Stored
from teacher_dump.teachers.network import NetworkTeacher

GRID = VoxelGrid("tiny", "ego", (-4.0, -2.0, -1.0), 0.5, (16, 8, 4))
NAMES = OCC3D_CLASSES.names
CHANNELS, STRIDE = 5, 2
SIGNAL = Features(GRID, NAMES, CHANNELS, STRIDE)
TOKENS = ["a" * 32, "b" * 32, "c" * 32]
MAPS = (
    torch.randn(2, CHANNELS, 8, 4, generator=torch.Generator().manual_seed(0))
    * torch.logspace(-3, 3, CHANNELS)[:, None, None]
)
LOG_PROBS = torch.full((2, *GRID.shape, len(NAMES)), 1 / len(NAMES)).log()


def decoded(features_CXY: np.ndarray) -> np.ndarray:
    """As any reader of the arrays finds them, float64 (C, X, Y)."""
    codes_XYC, scales_C2 = encode_features(features_CXY)
    assert codes_XYC.dtype == np.uint8 and scales_C2.dtype == np.float32
    lowest_C, step_C = scales_C2.astype(np.float64).T
    return (lowest_C + step_C * codes_XYC).transpose(2, 0, 1)


class TestRounding:
    @given(seed=st.integers(0, 999), magnitude=st.floats(-6, 6), offset=st.floats(-3, 3))
    @settings(max_examples=50, deadline=None)
    def test_a_value_is_off_by_half_a_step_at_most(self, seed, magnitude, offset):
        features = (np.random.default_rng(seed).normal(offset, 1, (3, 6, 5)) * 10**magnitude).astype(np.float32)
        steps_C = (features.max((1, 2)) - features.min((1, 2))) / 255
        rounding_C = 4 * np.finfo(np.float32).eps * np.abs(features).max((1, 2))
        error_CXY = np.abs(decoded(features) - features)
        assert (error_CXY <= (MAX_ERROR_STEPS * steps_C + rounding_C)[:, None, None]).all()

    def test_the_bound_is_met(self):
        """Half a step is reached, so a smaller bound would not hold."""
        features = np.array([0, 0.5, 1.5, 254.5, 255], np.float32).reshape(1, 1, 5)
        assert np.abs(decoded(features) - features).max() == MAX_ERROR_STEPS

    def test_ends_and_channels_that_are_the_same_everywhere_are_exact(self):
        features = np.stack([np.full((3, 2), 7.25), np.zeros((3, 2)), np.linspace(0, 51, 6).reshape(3, 2)])
        found = decoded(features)
        np.testing.assert_array_equal(found[:2], features[:2])
        assert found[2, 0, 0] == 0 and found[2, 2, 1] == pytest.approx(51, rel=1e-6)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_what_is_no_number_is_refused(self, wrong):
        features = np.zeros((2, 3, 3))
        features[1, 2, 0] = wrong
        with pytest.raises(ValueError, match="not all finite numbers"):
            encode_features(features)


def make_store(path, maps, signal=SIGNAL, teacher="teacher"):
    """A store of the features of keyframes, by token."""
    identity = StoreIdentity(teacher, "", {}, GRID, NAMES, described([signal]))
    writer = StoreWriter.open(path, identity, TOKENS, ["scene"] * 3)
    for token, features in maps.items():
        said = {"features": features.numpy()}
        writer.write(token, said, np.zeros(GRID.shape, np.uint8), np.ones(GRID.shape, bool), np.zeros(8, np.uint32))
    return TeacherStore(path)


def open_stored(*stores, asked=("features",)):
    return Stored("stored", stores, "skip", None, 1.0, GRID, OCC3D_CLASSES, asked)


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_stores_tell_them_mirrored_or_nothing_of_a_frame_that_none_holds(tmp_path, flips):
    stores = [make_store(tmp_path / f"{row}.zarr", {TOKENS[row]: MAPS[row]}) for row in range(2)]
    provider = open_stored(*stores)
    frames = [
        Frame(token=token, teachers={"stored": provider.told(token)}).mirrored(Mirror(*flips)) for token in TOKENS
    ]
    teacher = provider.taught(stack(frames))
    told = teacher.features()
    assert (told.frame, told.stride, told.values.shape) == ("grid", STRIDE, (3, CHANNELS, 8, 4))
    steps_BC = (MAPS.amax((2, 3)) - MAPS.amin((2, 3))) / 255
    expected = MAPS.flip([axis + 2 for axis, flip in enumerate(flips) if flip])
    assert ((told.values[:2] - expected).abs() <= 0.501 * steps_BC[:, :, None, None]).all()
    assert not told.values[2].any()
    assert teacher.taught_B.tolist() == [True, True, False]
    assert teacher.features().values is told.values  # for several terms, once


def test_a_store_is_read_back_and_continued_with_the_same_shape_alone(tmp_path):
    store = make_store(tmp_path / "store.zarr", {TOKENS[0]: MAPS[0]})
    assert store.identity.signals["features"] == {
        "_target_": "distill.signals.features.Features", "channels": 5, "stride": 2, "max_error_steps": 0.5,
    }  # fmt: skip
    first = store.place.read(store.arrays["bev_features"].chunk(0))
    store = make_store(tmp_path / "store.zarr", {TOKENS[1]: MAPS[1]})
    assert store.present == set(TOKENS[:2])
    assert store.place.read(store.arrays["bev_features"].chunk(0)) == first
    for token in store.present:
        store.verify(token)
    with pytest.raises(InputError, match=r"signals\.features\.stride is 2 there, 4 here"):
        make_store(tmp_path / "store.zarr", {}, dataclasses.replace(SIGNAL, stride=4))


def test_a_map_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(
        InputError, match=r"was not written: its BEV features have the shape \(5, 4, 8\), not \(5, 8, 4\)"
    ):
        make_store(tmp_path / "store.zarr", {TOKENS[0]: MAPS[0].mT})


def test_a_store_without_them_says_how_to_get_them(tmp_path):
    store = make_store(tmp_path / "store.zarr", {}, Seen(GRID, NAMES))
    with pytest.raises(
        InputError, match=r"no signal answers for features .* new store.path with dump.signals=\[seen,features\]$"
    ):
        open_stored(store)


def test_features_of_two_teachers_do_not_compare(tmp_path):
    stores = [make_store(tmp_path / f"{name}.zarr", {}, teacher=name) for name in ("one", "two")]
    with pytest.raises(InputError, match=r"teachers.stored.paths: features of different teachers \(one, two\)"):
        open_stored(*stores)


class TestTeachers:
    def test_one_without_a_map_is_refused(self):
        for teacher in (SimpleNamespace(), SimpleNamespace(features=None)):
            with pytest.raises(InputError, match=r"^has no map of BEV features: leave features out of dump\.signals"):
                Features.of(teacher, GRID, NAMES)

    def test_one_whose_cells_do_not_divide_the_grid_is_refused(self):
        with pytest.raises(InputError, match=r"stride 3, which does not divide the grid of 16 x 8:"):
            Features.of(SimpleNamespace(features=FeatureKind(5, 3)), GRID, NAMES)

    def test_a_network_says_what_it_has(self):
        """The shipped one, without its answer; what `predict` gives is what `features` promises."""
        teacher = NetworkTeacher("pkg://teacher_dump/weights/fusion_demo.safetensors", "ema")
        assert teacher.features == FeatureKind(48, 1)
        found = Occupancy(torch.zeros(2, *GRID.shape, 18), {"bev": FeatureMap(MAPS, "grid", STRIDE)})
        teacher.answer = lambda frame: found
        said = SIGNAL.say(teacher.predict(None), None, 17)
        assert all(np.array_equal(one, expected) for one, expected in zip(said, MAPS.numpy(), strict=True))

    def test_half_precision_is_taken_as_it_is_meant(self):
        said = SIGNAL.say(TeacherPrediction(LOG_PROBS, more={"features": MAPS.bfloat16()}), None, 17)
        assert SIGNAL.encode(said[0])["bev_features"].shape == (8, 4, CHANNELS)

    def test_one_that_promised_them_must_give_them(self):
        with pytest.raises(InputError, match=r"has nothing in more\['features'\] for 2 keyframes"):
            SIGNAL.say(TeacherPrediction(LOG_PROBS), None, 17)


def test_features_of_voxels_are_kept_mirrored_and_asked_alike(tmp_path):
    signal = VoxelFeatures(GRID, NAMES, 3, 2)
    maps = np.random.default_rng(0).normal(size=(3, 8, 4, 2)).astype(np.float32)
    identity = StoreIdentity("teacher", "", {}, GRID, NAMES, described([signal]))
    writer = StoreWriter.open(tmp_path / "store.zarr", identity, TOKENS, ["scene"] * 3)
    rest = np.zeros(GRID.shape, np.uint8), np.ones(GRID.shape, bool), np.zeros(8, np.uint32)
    writer.write(TOKENS[0], {"voxel_features": maps}, *rest)
    with pytest.raises(InputError, match=r"its voxel features have the shape \(3, 8, 4\), not \(3, 8, 4, 2\)"):
        writer.write(TOKENS[1], {"voxel_features": maps[..., 0]}, *rest)
    store = TeacherStore(tmp_path / "store.zarr")
    store.verify(TOKENS[0])
    provider = Stored("stored", [store], "skip", None, 1.0, GRID, OCC3D_CLASSES, {"voxel_features"})
    frame = stack([Frame(token=TOKENS[0], teachers={"stored": provider.told(TOKENS[0])})])
    found = provider.taught(frame).ask("voxel_features")()
    assert found.frame == "grid" and found.stride == 2
    steps_C = (maps.max((1, 2, 3)) - maps.min((1, 2, 3))) / 255
    assert (np.abs(found.values[0].numpy() - maps) <= 0.51 * steps_C[:, None, None, None]).all()
    mirrored = provider.taught(frame.mirrored(Mirror(x=True))).ask("voxel_features")().values
    assert torch.equal(mirrored, found.values.flip(2))


def test_a_network_without_voxel_features_says_so():
    teacher = SimpleNamespace(features=FeatureKind(5, 2))
    with pytest.raises(InputError, match=r"^has no map of voxel features: leave voxel_features out of dump\.signals"):
        VoxelFeatures.of(teacher, GRID, NAMES)
