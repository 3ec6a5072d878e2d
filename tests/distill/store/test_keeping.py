"""What a store keeps: which encoding, and of which voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, stack
from distill.grids import VoxelGrid
from distill.signals import TeacherPrediction, described
from distill.signals.bev import Bev
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.columns import ColumnVoxels
from distill.signals.voxels import Voxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.store.keeping import encoded, encoded_as_in, kept
from distill.teaching.stored import Stored

GRID = VoxelGrid("tiny", "ego", (0.0, 0.0, 0.0), 1.0, (10, 8, 4))
NAMES, FREE = OCC3D_CLASSES.names, 17
TOKENS = ["a" * 32, "b" * 32]
LEVELS = [LevelVoxels(GRID, NAMES), LevelBev(GRID, NAMES)]


def of_a_head(random: torch.Generator) -> torch.Tensor:
    """Log-probabilities from a linear head of 4 channels per column."""
    features, head = torch.randn(10, 8, 4, generator=random), torch.randn(4, 4 * 18, generator=random)
    return (features @ head).view(1, *GRID.shape, 18).log_softmax(-1)


def noise(random: torch.Generator) -> torch.Tensor:
    """Log-probabilities that have nothing in common."""
    return (4 * torch.randn(1, *GRID.shape, 18, generator=random)).log_softmax(-1)


def first(say, labelled: bool = True) -> tuple[Frame, TeacherPrediction]:
    random = torch.Generator().manual_seed(0)
    frame = Frame(
        token=TOKENS[:1],
        labelled=torch.tensor([labelled]),
        mask_camera=torch.rand(1, *GRID.shape, generator=random) < 0.2,
    )
    return frame, TeacherPrediction(say(random))


def asked(**given):
    return OmegaConf.create({"encoding": "auto", "step": 0.25, "keep": "all", **given})


@pytest.mark.parametrize(("say", "kind"), [(of_a_head, ColumnVoxels), (noise, LevelVoxels)])
def test_the_smaller_encoding_is_taken_and_said(say, kind) -> None:
    signals, told = encoded(LEVELS, asked(), lambda: first(say))
    assert isinstance(signals[0], kind)
    assert isinstance(signals[1], LevelBev)
    assert f"voxels are kept by {'columns' if kind is ColumnVoxels else 'levels'} (store.encoding" in told
    assert "MB by columns" in told
    assert "MB by levels" in told


def test_what_columns_cannot_keep_is_kept_by_levels(monkeypatch) -> None:
    monkeypatch.setattr("distill.signals.columns.MAX_MEAN_KL", 0.0)
    signals, told = encoded(LEVELS, asked(), lambda: first(noise))
    assert isinstance(signals[0], LevelVoxels)
    assert "by columns" not in told.removeprefix("voxels are kept by levels")
    with pytest.raises(InputError, match=r"was not written: its voxels on columns in steps of 0\.0625 nats miss"):
        encoded(LEVELS, asked(encoding="columns"), lambda: first(noise))


def test_no_keyframe_is_asked_where_nothing_depends_on_it() -> None:
    def nobody():
        raise AssertionError("asked")

    fine, told = encoded(LEVELS, asked(encoding="fine"), nobody)
    assert [type(signal) for signal in fine] == [Voxels, Bev]
    assert told == ""
    assert encoded(LEVELS, asked(encoding="levels"), nobody)[0] == LEVELS
    assert encoded(LEVELS[1:], asked(), nobody)[0] == LEVELS[1:]


def make_store(path, signals, keep="all") -> StoreWriter:
    identity = StoreIdentity("t", "", {}, GRID, NAMES, described(signals), keep=keep)
    StoreWriter.create(path, identity, TOKENS, ["scene"] * 2, signals)
    return StoreWriter.open(path, identity, TOKENS, ["scene"] * 2)


def test_a_dump_goes_on_in_the_encoding_that_is_there(tmp_path) -> None:
    signals, _ = encoded(LEVELS, asked(), lambda: first(of_a_head))
    store = make_store(tmp_path / "store.zarr", signals).store
    again = encoded_as_in(store, LEVELS, asked())
    assert np.array_equal(again[0].column_basis, signals[0].column_basis)
    assert encoded_as_in(store, LEVELS, asked(encoding="columns")) == again
    with pytest.raises(InputError, match=r"keeps voxels by columns, store\.encoding=levels is asked for: set"):
        encoded_as_in(store, LEVELS, asked(encoding="levels"))
    with pytest.raises(InputError, match=r"in steps of 0\.25 nats, store\.step=0\.5 is asked for: set store\.step"):
        encoded_as_in(store, LEVELS, asked(step=0.5))
    fine = make_store(tmp_path / "fine.zarr", [Voxels(GRID, NAMES), Bev(GRID, NAMES)]).store
    assert [type(signal) for signal in encoded_as_in(fine, LEVELS, asked())] == [Voxels, Bev]


@pytest.mark.parametrize("encoding", ["columns", "levels", "fine"])
def test_what_cameras_show_is_kept_and_columns_stay_what_they_are(tmp_path, encoding: str) -> None:
    frame, prediction = first(of_a_head)
    signals, _ = encoded(LEVELS, asked(encoding=encoding, keep="visible"), lambda: (frame, prediction))
    writer = make_store(tmp_path / "store.zarr", signals, keep="visible")
    partly = kept(prediction, frame, "visible", whole_columns=encoding == "columns")
    said = {signal.name: signal.say(partly, frame, FREE)[0] for signal in signals}
    semantics, everywhere = prediction.semantics(FREE)[0].numpy(), np.ones(GRID.shape, bool)
    writer.write(TOKENS[0], said, semantics, everywhere, np.ones(8, np.uint32), partly.kept_BXYZ[0].numpy())
    store = TeacherStore(tmp_path / "store.zarr")
    seen_XYZ = frame.mask_camera[0]
    expected_XYZ = seen_XYZ.any(-1, keepdim=True).expand_as(seen_XYZ) if encoding == "columns" else seen_XYZ
    np.testing.assert_array_equal(store.coverage(TOKENS[0]), expected_XYZ)
    assert store.in_columns(TOKENS[0]).all()
    told = stack([store.told(TOKENS[0], ["voxels", "bev"], coverage=True, in_columns=True)])
    index_V = expected_XYZ.flatten().nonzero().squeeze(1)
    heard = {name: store.signals[name].listen(told.signals[name], frame, GRID, FREE, frozenset()) for name in said}
    voxels_VC = prediction.voxel_log_probs_BXYZC.flatten(0, 3)[index_V]
    found_VC = heard["voxels"].voxels(index_V).log_softmax(-1)
    assert (voxels_VC.exp() * (voxels_VC - found_VC)).sum(-1).max() < 2e-2
    columns_KC = bev_log_probs(prediction.voxel_log_probs_BXYZC[0], FREE).flatten(0, 1)
    index_K = (index_V // 4).unique()
    found_KC = heard["bev"].columns(index_K).log_softmax(-1)
    assert (columns_KC[index_K].exp() * (columns_KC[index_K] - found_KC)).sum(-1).max() < 3e-3


def test_stores_of_different_encodings_do_not_teach_together(tmp_path) -> None:
    """Frames of both would meet in one batch."""
    by_columns, _ = encoded(LEVELS, asked(encoding="columns"), lambda: first(of_a_head))
    stores = [make_store(tmp_path / "a.zarr", LEVELS).store, make_store(tmp_path / "b.zarr", by_columns).store]
    given = "error", None, 1.0, GRID, OCC3D_CLASSES
    with pytest.raises(
        InputError, match=r"a\.zarr and .*b\.zarr encode voxels differently .*: make them alike with occ-store"
    ):
        Stored("stored", stores, *given, {"voxels"})
    assert Stored("stored", stores, *given, {"columns"}).answers["columns"].name == "bev"


def test_keyframes_without_labels_are_kept_whole() -> None:
    frame, prediction = first(noise, labelled=False)
    assert kept(prediction, frame, "visible", whole_columns=False).said().all()
    assert kept(prediction, frame, "all", whole_columns=False) is prediction
