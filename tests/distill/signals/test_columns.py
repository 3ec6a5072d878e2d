"""Voxels kept as coefficients of columns, and what they promise."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Mirror, stack
from distill.grids import VoxelGrid
from distill.signals import described
from distill.signals.arrays import StoredArray, bit_planes, repeats, slice_by_slice
from distill.signals.coarse import LevelBev
from distill.signals.columns import MAX_KL, MAX_MEAN_KL, ColumnVoxels, CoveredVoxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore

GRID = VoxelGrid("tiny", "ego", (-4.0, -4.0, -1.0), 1.0, (10, 8, 4))
NAMES = OCC3D_CLASSES.names
TOKENS = [f"{number:032x}" for number in range(3)]
EVERYWHERE = np.ones(GRID.shape, bool)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)


def head(seed: int, hidden: int = 5) -> CoveredVoxels:
    """What a linear head per column says of features of `hidden` channels."""
    weights = np.random.default_rng(0).normal(0, 1.5, (hidden, GRID.shape[2] * 18))
    features = np.random.default_rng(seed).normal(0, 1.5, (*GRID.shape[:2], hidden))
    return CoveredVoxels(log_softmax((features @ weights).reshape(*GRID.shape, 18)), EVERYWHERE)


def kl(teacher: np.ndarray, decoded: np.ndarray, temperature: float) -> np.ndarray:
    """KL(teacher || decoded) of each voxel at a temperature, nats; float64."""
    p, q = (x.astype(np.float64) / temperature for x in (np.maximum(teacher, -1e4), decoded))
    p, q = (x - x.max(-1, keepdims=True) for x in (p, q))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


class Rows:
    """Reads what was encoded, as a store would."""

    def __init__(self, signal, encoded: dict[str, np.ndarray], covered: np.ndarray = EVERYWHERE) -> None:
        self.arrays = {array.name: array for array in signal.arrays()}
        self.chunks = {name: self.arrays[name].pack(values) for name, values in encoded.items()}
        self.covered = covered

    def __call__(self, name: str) -> np.ndarray:
        return self.covered if name == "voxel_coverage" else self.arrays[name].unpack(self.chunks[name])

    def slices(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.arrays[name].unpack_slices(self.chunks[name])


def decoded(signal: ColumnVoxels, encoded: dict[str, np.ndarray]) -> np.ndarray:
    """By the formula, from all arrays as any reader finds them, (X, Y, Z, C)."""
    steps = np.einsum("kxy,kzc->xyzc", encoded["column_coefs"].astype(np.float64), signal.column_basis)
    return signal.column_mean + encoded["column_step"][0] * steps


SIGNAL = ColumnVoxels.fitted(head(1), 0.25, GRID, NAMES)


def listened(*records, frames=None, signal=SIGNAL):
    return signal.listen(stack(records), frames, GRID, 17, frozenset())


def test_a_linear_head_takes_as_many_planes_as_it_has_channels_and_one() -> None:
    encoded = SIGNAL.encode(head(2))
    used = encoded["column_coefs"].any((1, 2))
    assert used[:6].any()
    assert not used[6:].any()
    basis = SIGNAL.column_basis.reshape(72, 72)
    np.testing.assert_allclose(basis @ basis.T, np.eye(72), atol=1e-5)


def test_what_is_kept_is_as_near_as_it_says() -> None:
    said = head(2)
    encoded = SIGNAL.encode(said)
    assert encoded["column_step"] == 0.25
    for index, temperature in enumerate((1, 2, 4)):
        missed = kl(said.log_probs_XYZC, decoded(SIGNAL, encoded), temperature)
        np.testing.assert_allclose(encoded["voxel_kl"][:, index], [missed.mean(), missed.max()], rtol=0.02, atol=2e-7)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 12),
    lost=st.sampled_from([0.0, 0.3, 0.9]),
    step=st.sampled_from([0.0625, 0.25, 1.0]),
    uncovered=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_every_teacher_is_kept_within_the_bounds_or_refused(seed, spread, lost, step, uncovered) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, (*GRID.shape, 18))
    logits[..., 1:][random.random((*GRID.shape, 17)) < lost] = -np.inf
    said = CoveredVoxels(log_softmax(logits), random.random(GRID.shape) >= uncovered)
    signal = replace(SIGNAL, step=step)
    try:
        encoded = signal.encode(said)
    except ValueError as error:
        assert "miss the teacher's by" in str(error)
        return
    assert encoded["column_step"] <= step
    for temperature in (1, 2, 4):
        missed = kl(said.log_probs_XYZC, decoded(signal, encoded), temperature)[said.covered_XYZ]
        assert missed.sum() <= MAX_MEAN_KL * 1.01 * max(len(missed), 1)
        assert missed.max(initial=0) <= MAX_KL * 1.01


def test_a_step_that_is_too_coarse_is_halved() -> None:
    said = head(2)
    encoded = replace(SIGNAL, step=1.0).encode(said)
    assert 1 / 16 <= encoded["column_step"] < 1
    assert encoded["voxel_kl"][0].max() <= MAX_MEAN_KL


def test_a_teacher_of_certainties_is_refused_or_kept() -> None:
    """One-hot: exp(-64) stands for impossible."""
    hot = np.full((*GRID.shape, 18), -np.inf, np.float32)
    np.put_along_axis(hot, np.random.default_rng(0).integers(0, 18, (*GRID.shape, 1)), 0.0, -1)
    encoded = SIGNAL.encode(CoveredVoxels(hot, EVERYWHERE))
    assert (decoded(SIGNAL, encoded).argmax(-1) == hot.argmax(-1)).all()


@pytest.mark.parametrize("wrong", [np.nan, 0.3])
def test_what_is_no_distribution_is_refused(wrong: float) -> None:
    said = head(2)
    broken = said.log_probs_XYZC.copy()
    broken[3, 2, 1] = wrong
    with pytest.raises(ValueError, match="1 of 320 voxels do not hold log-probabilities that sum to one"):
        SIGNAL.encode(CoveredVoxels(broken, EVERYWHERE))
    hidden = EVERYWHERE.copy()
    hidden[3, 2, 1] = False
    SIGNAL.encode(CoveredVoxels(broken, hidden))


def test_students_hear_what_the_formula_says() -> None:
    """Of frames of unequal numbers of planes, and of one that nobody teaches."""
    sharp = head(3)
    random = np.random.default_rng(0).normal(0, 3, (*GRID.shape, 18))
    encoded = [
        SIGNAL.encode(head(2)),
        SIGNAL.encode(CoveredVoxels(log_softmax(random), EVERYWHERE)),
        SIGNAL.encode(sharp),
    ]
    records = [SIGNAL.decode(Rows(SIGNAL, each)) for each in encoded]
    assert len(records[0].planes) < len(records[1].planes)
    heard = listened(*records, SIGNAL.absent())
    expected = torch.from_numpy(np.stack([decoded(SIGNAL, each) for each in encoded])).log_softmax(-1).flatten(0, 3)
    voxels = torch.arange(3 * 320)
    some = torch.tensor([5, 5, 900, 17])
    torch.testing.assert_close(heard.voxels(some).double(), expected[some], rtol=0, atol=2e-5)
    torch.testing.assert_close(heard.voxels(voxels).double(), expected, rtol=0, atol=2e-5)
    assert heard.voxels(voxels[:0]).shape == (0, 18)
    assert heard.voxels(torch.tensor([3 * 320 + 7])).isfinite().all()
    assert heard.covered(voxels).all()
    assert not heard.covered(torch.arange(320) + 3 * 320).any()


def test_columns_follow_from_the_voxels_that_are_covered() -> None:
    covered = np.random.default_rng(0).random(GRID.shape) < 0.7
    covered[2, 3] = False
    said = CoveredVoxels(head(2).log_probs_XYZC, covered)
    encoded = SIGNAL.encode(said)
    heard = listened(SIGNAL.decode(Rows(SIGNAL, encoded, covered)))
    voxels_XYZC = torch.from_numpy(decoded(SIGNAL, encoded)).log_softmax(-1)
    expected = bev_log_probs(voxels_XYZC, 17, torch.from_numpy(covered)).flatten(0, 1)
    torch.testing.assert_close(heard.columns(torch.arange(80)).double(), expected, rtol=0, atol=1e-4)
    assert (expected[2 * 8 + 3] == expected[2 * 8 + 3, 0]).all()


@pytest.mark.parametrize("mirror", [Mirror(x=True), Mirror(y=True), Mirror(x=True, y=True)])
def test_the_mirrored_say_what_they_say_mirrored(mirror: Mirror) -> None:
    record = SIGNAL.decode(Rows(SIGNAL, SIGNAL.encode(head(2))))
    axes = [axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
    expected = listened(record).voxels(torch.arange(320)).view(*GRID.shape, 18).flip(axes).flatten(0, 2)
    for batch in (stack([record.mirrored(mirror)]), stack([record]).mirrored(mirror)):
        heard = SIGNAL.listen(batch, None, GRID, 17, frozenset())
        assert torch.equal(heard.voxels(torch.arange(320)), expected)


def test_half_precision_in_training_changes_nothing() -> None:
    record = SIGNAL.decode(Rows(SIGNAL, SIGNAL.encode(head(2))))
    expected = listened(record).voxels(torch.arange(320))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(listened(record).voxels(torch.arange(320)), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def make_store(path: Path, signal: ColumnVoxels = SIGNAL) -> TeacherStore:
    signals = [signal, LevelBev(GRID, NAMES)]
    identity = StoreIdentity("head", "", {}, GRID, NAMES, described(signals))
    StoreWriter.create(path, identity, TOKENS, ["scene"] * 3, signals)
    writer = StoreWriter.open(path, identity, TOKENS, ["scene"] * 3)
    for index in (0, 2):
        said = head(index)
        bev = bev_log_probs(torch.from_numpy(said.log_probs_XYZC), 17).numpy()
        semantics = said.log_probs_XYZC.argmax(-1).astype(np.uint8)
        writer.write(TOKENS[index], {"voxels": said, "bev": bev}, semantics, EVERYWHERE, np.ones(8, np.uint32))
    return TeacherStore(path)


def test_plain_zarr_reads_a_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store.zarr")
    group = zarr.open_group(tmp_path / "store.zarr", mode="r")
    row = TOKENS.index(store.tokens[2])
    steps = np.einsum("kxy,kzc->xyzc", group["column_coefs"][row], group["column_basis"][:])
    logits = group["column_mean"][:] + group["column_step"][row, 0] * steps
    record = store.told(TOKENS[2], ["voxels"], coverage=False).signals["voxels"]
    heard = pickle.loads(pickle.dumps(store)).signals["voxels"].listen(stack([record]), None, GRID, 17, frozenset())
    assert isinstance(heard.record.basis, torch.Tensor)
    read = heard.voxels(torch.arange(320)).view(*GRID.shape, 18)
    torch.testing.assert_close(read, torch.from_numpy(logits).log_softmax(-1), rtol=0, atol=2e-5)
    missed = kl(head(2).log_probs_XYZC, logits, 1)
    np.testing.assert_allclose(group["voxel_kl"][row, :, 0], [missed.mean(), missed.max()], rtol=0.02, atol=2e-7)
    levels = np.array(store.identity.signals["bev"]["levels"])
    bev = bev_log_probs(torch.from_numpy(head(2).log_probs_XYZC), 17).numpy()
    assert kl(bev, levels[group["bev_codes"][row]], 1).max() <= 2.7e-3


def test_a_store_has_one_basis_whoever_writes(tmp_path: Path) -> None:
    """Who creates it later, with another basis, finds the first one's."""
    store = make_store(tmp_path / "store.zarr")
    other = ColumnVoxels.fitted(head(9, hidden=3), 0.25, GRID, NAMES)
    assert not np.allclose(other.column_basis, SIGNAL.column_basis)
    StoreWriter.create(tmp_path / "store.zarr", store.identity, TOKENS, ["scene"] * 3, [other])
    assert np.array_equal(TeacherStore(tmp_path / "store.zarr").signals["voxels"].column_basis, SIGNAL.column_basis)


def test_a_basis_that_is_none_is_refused() -> None:
    basis = SIGNAL.column_basis.copy()
    basis[3] = basis[4]
    with pytest.raises(ValueError, match="no orthonormal basis of columns of 72 numbers"):
        replace(SIGNAL, column_basis=basis)
    wider = VoxelGrid("wider", "ego", (0.0, 0.0, 0.0), 1.0, (10, 8, 5))
    with pytest.raises(ValueError, match="no orthonormal basis of columns of 90 numbers"):
        replace(SIGNAL, grid=wider)


def test_a_damaged_basis_is_noticed(tmp_path: Path) -> None:
    make_store(tmp_path / "store.zarr")
    files = (tmp_path / "store.zarr" / "column_basis").rglob("*")
    (chunk,) = (file for file in files if file.is_file() and file.name != "zarr.json")
    content = bytearray(chunk.read_bytes())
    content[100] ^= 4
    chunk.write_bytes(content)
    with pytest.raises(InputError, match=r"store\.zarr is damaged in column_basis/c.*: dump to another store\.path"):
        TeacherStore(tmp_path / "store.zarr")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    values=st.sampled_from([0, 1, 3, 30000]),
    compressor=st.sampled_from([slice_by_slice("int16", (20, 24)), bit_planes(2), repeats(2)]),
)
def test_slices_of_zeros_are_left_out_and_no_others(seed, share, values, compressor) -> None:
    random = np.random.default_rng(seed)
    planes = random.integers(-values, values + 1, (12, 20, 24)).astype(np.int16)
    planes[random.random(12) >= share] = 0
    planes[:, 3:] *= random.random((12, 1, 1)) < 0.5
    array = StoredArray("planes", "int16", (12, 20, 24), (0, 1, 2), compressor)
    used, found = array.unpack_slices(array.pack(planes))
    expected = np.flatnonzero(planes.any((1, 2)))
    np.testing.assert_array_equal(used, expected)
    np.testing.assert_array_equal(found, planes[expected])
