"""What occ-dump makes of a teacher's answer, on a tiny grid."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame
from distill.gaussians import Gaussians
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.signals import GaussianKind, described
from distill.signals.gaussians import render
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from teacher_dump.gate import Gate
from teacher_dump.main import Dump, check_grid, chosen_tokens, signals_of
from teacher_dump.teachers import TeacherPrediction

GRID = VoxelGrid("tiny", "ego", (-2.0, -2.0, 1.0), 0.5, (8, 8, 6))  # up to 4 m, a metre above what Gaussians cover
TOKENS = ["a" * 32, "b" * 32]
KIND = GaussianKind(3, "probabilistic", 4.0, "stable", SURROUNDOCC)


class Teacher:
    """Three Gaussians; `answer` changes what it makes of them."""

    grid, inputs, checkpoint_sha256, gaussians = GRID, {}, "", KIND

    def __init__(self, answer=lambda prediction: prediction):
        self.answer = answer

    def predict(self, batch):
        gaussians = [frame_gaussians(token) for token in batch["token"]]
        told = [
            render(frame, GRID, pose_44, torch.arange(8 * 8 * 6))
            for frame, pose_44 in zip(gaussians, batch["lidar2ego"], strict=True)
        ]
        log_probs, covered = (torch.stack(parts).unflatten(1, GRID.shape) for parts in zip(*told, strict=True))
        return self.answer(TeacherPrediction(log_probs, covered, gaussians))


def frame_gaussians(token):
    random = torch.Generator().manual_seed(int(token, 16) % 1000)
    return Gaussians(
        torch.rand(3, 3, generator=random) * 2 + torch.tensor([-1.0, -1.0, 1.0]),
        torch.full((3, 3), 0.7),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(3, 1),
        torch.ones(3),
        torch.nn.functional.pad(torch.randn(3, 17, generator=random).mul(3).softmax(1), (0, 1)),
        KIND.form,
        KIND.reach,
        KIND.det,
        KIND.space,
    )


@pytest.fixture
def batch():
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 0.5
    return Frame(
        token=TOKENS,
        lidar2ego=poses,
        labelled=torch.tensor([False, False]),
        semantics=torch.full((2, *GRID.shape), 17, dtype=torch.uint8),
        mask_camera=torch.zeros(2, *GRID.shape, dtype=torch.bool),
    )


ALL, WITHOUT_GAUSSIANS = ("voxels", "bev", "gaussians"), ("voxels", "bev")


def chosen_signals(names, teacher):
    config = OmegaConf.create({"dump": {"signals": list(names)}, "teacher": {"name": "fusion"}})
    return signals_of(config, teacher, OCC3D_CLASSES)


def make_dump(folder, teacher, names=ALL):
    signals = described(chosen_signals(names, teacher))
    identity = StoreIdentity("t", "", {}, GRID, OCC3D_CLASSES.names, signals)
    writer = StoreWriter.open(folder / "store.zarr", identity, TOKENS, ["scene"] * 2)
    digests = {token: np.arange(8, dtype=np.uint32) for token in TOKENS}
    return Dump(OmegaConf.create(), teacher, writer, Gate(10.0, 1, OCC3D_CLASSES), digests, torch.device("cpu"))


def test_what_is_not_covered_is_uniform_and_has_no_part_in_its_column(tmp_path, batch):
    dump = make_dump(tmp_path, Teacher())
    told = Teacher().predict(batch)
    for index, sample in enumerate(dump.samples(batch, first=False)):
        covered = told.covered_BXYZ[index]
        assert covered[..., :4].all()
        assert not covered[..., 4:].any()
        np.testing.assert_array_equal(sample["coverage_XYZ"], covered)
        voxels, said_of = sample["said"]["voxels"]
        np.testing.assert_array_equal(said_of, covered)
        np.testing.assert_array_equal(voxels[covered], told.voxel_log_probs_BXYZC[index][covered])
        np.testing.assert_allclose(voxels[~covered], -math.log(18), rtol=1e-6)
        bev = bev_log_probs(told.voxel_log_probs_BXYZC[index, :, :, :4], 17).exp()
        np.testing.assert_allclose(np.exp(sample["said"]["bev"]), bev, atol=1e-6)
        dump.writer.write(**sample)
    store = TeacherStore(tmp_path / "store.zarr")
    assert store.present == set(TOKENS)
    assert (store.semantics(TOKENS[0])[..., 4:] == 255).all()
    kept = store.told(TOKENS[1], ["gaussians"], coverage=False).signals["gaussians"].gaussians
    assert len(kept.means_G3) == 3


def test_classes_are_the_argmax_of_the_teacher_itself(tmp_path, batch):
    """Which the rounded values could not tell."""

    def answer(prediction):
        scores = torch.randn(2, *GRID.shape, 18, generator=torch.Generator().manual_seed(0)) * 0.01
        return TeacherPrediction(scores.log_softmax(-1))

    dump = make_dump(tmp_path, Teacher(answer), WITHOUT_GAUSSIANS)
    for sample in dump.samples(batch, first=False):
        dump.writer.write(**sample)
    expected = answer(None).voxel_log_probs_BXYZC[0]
    store = TeacherStore(tmp_path / "store.zarr")
    np.testing.assert_array_equal(store.semantics(TOKENS[0]), expected.argmax(-1))
    codes_ZXYC = store.told(TOKENS[0], ["voxels"], coverage=False).signals["voxels"].codes
    assert (codes_ZXYC.argmin(-1).transpose(1, 2, 0) != expected.argmax(-1).numpy()).any()


def test_garbage_where_nothing_is_covered_does_no_harm(tmp_path, batch):
    def answer(prediction):
        return prediction._replace(
            voxel_log_probs_BXYZC=prediction.voxel_log_probs_BXYZC.masked_fill(
                ~prediction.covered_BXYZ.unsqueeze(-1), torch.nan
            )
        )

    clean, dirty = (make_dump(tmp_path, Teacher(*a)).samples(batch, first=False) for a in ((), (answer,)))
    for before, after in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(before["said"]["voxels"].log_probs_XYZC, after["said"]["voxels"].log_probs_XYZC)
        np.testing.assert_array_equal(before["said"]["bev"], after["said"]["bev"])
        np.testing.assert_array_equal(before["coverage_XYZ"], after["coverage_XYZ"])


def test_a_teacher_that_models_everything_need_not_say_so(tmp_path, batch):
    def answer(prediction):
        return TeacherPrediction(prediction.voxel_log_probs_BXYZC)

    dump = make_dump(tmp_path, Teacher(answer), WITHOUT_GAUSSIANS)
    for sample in dump.samples(batch, first=False):
        assert sample["coverage_XYZ"].all()
        dump.writer.write(**sample)


def test_voxels_without_coverage_are_judged_as_free(tmp_path, batch):
    """They were not found to be anything, so an occupied one is missed."""
    batch.mask_camera[..., 4:] = True
    semantics = torch.full((2, *GRID.shape), 4, dtype=torch.uint8)
    batch = dataclasses.replace(batch, labelled=torch.tensor([True, False]), semantics=semantics)
    dump = make_dump(tmp_path, Teacher())
    with pytest.raises(InputError, match=r"0\.00 mIoU"):
        dump.samples(batch, first=False)
    assert dump.gate.confusion.score().geometric_iou == 0


def test_gaussians_that_disagree_with_the_voxels_stop_the_dump_at_once(tmp_path, batch):
    def answer(prediction):
        moved = [dataclasses.replace(g, means_G3=g.means_G3 + 0.5) for g in prediction.gaussians]
        return prediction._replace(gaussians=moved)

    dump = make_dump(tmp_path, Teacher(answer))
    with pytest.raises(InputError, match=f"{TOKENS[0]}: voxels rendered from its stored Gaussians"):
        dump.samples(batch, first=True)


def test_gaussians_of_another_kind_stop_the_dump(tmp_path, batch):
    teacher = Teacher()
    teacher.gaussians = dataclasses.replace(KIND, reach=3.0)
    with pytest.raises(InputError, match=f"sample {TOKENS[0]} was not written: .*announced"):
        make_dump(tmp_path, teacher).samples(batch, first=True)


def test_gaussians_that_were_announced_must_come(tmp_path, batch):
    dump = make_dump(tmp_path, Teacher(lambda prediction: prediction._replace(gaussians=None)))
    with pytest.raises(InputError, match="has no Gaussians, which this store holds"):
        dump.samples(batch, first=False)


def test_a_teacher_with_free_space_elsewhere_is_refused(tmp_path, batch):
    """0 = empty, as in the labels of OpenOccupancy; 17 is never said."""

    def answer(prediction):
        log_probs = torch.full((2, *GRID.shape, 18), -torch.inf)
        log_probs[..., 0] = 0.0
        return TeacherPrediction(log_probs)

    dump = make_dump(tmp_path, Teacher(answer), WITHOUT_GAUSSIANS)
    with pytest.raises(InputError, match=f"sample {TOKENS[0]}: .* 100% are class 0 .*Nothing was written"):
        dump.samples(batch, first=False)


def test_signals_are_chosen_by_name_or_by_the_path_of_their_class():
    own = "distill.signals.gaussians.GaussianSet"
    signals = chosen_signals(["bev", own], Teacher())
    assert [signal.name for signal in signals] == ["bev", "gaussians"]
    assert signals[1].kind == KIND
    for name, told in (
        ("maybe", r"signal maybe: choose one of bev, voxels, .*, voxel_features, points, or give MODULE\.CLASS"),
        ("no.Signal", "signal no.Signal: there is no module no; give"),
        ("distill.gaussians.Gaussians", r"is no subclass of distill\.signals\.Signal"),
        ("math.sqrt", r"is no subclass of distill\.signals\.Signal"),
    ):
        with pytest.raises(InputError, match=told):
            chosen_signals([name], Teacher())
    with pytest.raises(InputError, match="two signals have the name gaussians"):
        described(chosen_signals(["gaussians", own], Teacher()))


def test_a_teacher_without_gaussians():
    voxels_alone = type("VoxelTeacher", (), {"grid": GRID})()
    with pytest.raises(InputError, match=r"teacher fusion predicts no Gaussians: leave gaussians out of dump\.signals"):
        chosen_signals(["gaussians"], voxels_alone)


SPLITS = {"train": "ab", "val": "cd", "hard": "bd"}


class Index:
    """Of a dataroot with these splits."""

    def keyframes(self, split):
        return SimpleNamespace(tokens=list(SPLITS[split]))


def test_splits_that_overlap_are_refused():
    def chosen(*splits, first=None):
        config = OmegaConf.create({"dump": {"splits": list(splits), "max_samples": first}})
        return "".join(chosen_tokens(config, Index()))

    assert chosen("val", "train") == "cdab"
    assert chosen("val", "train", first=3) == "cda"
    for first in (None, 1):
        with pytest.raises(
            InputError, match=r"dump\.splits=\[train, val, hard\] overlap: 2 keyframes are in two of them"
        ):
            chosen("train", "val", "hard", first=first)


def test_a_teacher_on_another_grid_is_told_what_to_do():
    check_grid(Teacher(), GRID)
    on_occ3d = type("Elsewhere", (), {"grid": OCC3D})()
    check_grid(on_occ3d, OCC3D)
    with pytest.raises(InputError, match="predicts on grid occ3d: dump it with grid=occ3d"):
        check_grid(on_occ3d, SURROUNDOCC)
    with pytest.raises(
        InputError, match=r"predicts on VoxelGrid\(name='tiny'.*: let it predict on distill\.grids\.OCC3D"
    ):
        check_grid(Teacher(), OCC3D)
    # a name is no grid
    with pytest.raises(InputError, match=r"shape=\(8, 8, 6\)\), this dump is on .*shape=\(200, 200, 16\)"):
        check_grid(type("Namesake", (), {"grid": dataclasses.replace(GRID, name="occ3d")})(), OCC3D)
