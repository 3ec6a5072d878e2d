"""Frames joined with a tiny store of voxels and Gaussians, and with whoever else teaches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import KIND, gaussians
from torch import nn

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, Mirror, stack
from distill.grids import OCC3D, VoxelGrid
from distill.signals import described
from distill.signals.bev import Bev, Columns
from distill.signals.gaussians import GaussianSet
from distill.signals.seen import Seen
from distill.signals.voxels import Voxels
from distill.store import DamagedSample, StoreIdentity, StoreWriter, TeacherStore
from distill.teaching import Pupil
from distill.teaching.stored import Stored, open_stored
from student.stream import TeacherStream

GRID = VoxelGrid("tiny", "ego", (-2.0, -2.0, -1.0), 1.0, (4, 4, 2))
TOKENS = ["a" * 32, "b" * 32, "c" * 32]
NAMES = OCC3D_CLASSES.names
DIGESTS = np.zeros(8, np.uint32)
ALL = ("voxels", "bev", "gaussians")


class Frames:
    """What a stream needs of a `FrameDataset`."""

    def __init__(self, mirror):
        self.mirror = mirror

    def __len__(self):
        return len(TOKENS)

    def load(self, index):
        pose = np.eye(4, dtype=np.float32)
        pose[:3, 3] = (0.5, 0.25, 0.1 * index)
        return Frame(token=TOKENS[index], lidar2ego=pose), self.mirror


def gaussians_of(index):
    return gaussians(index, 4 + index, (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))


def make_store(path, signals=ALL, grid=GRID, tokens=TOKENS):
    """A store of which the last sample is missing."""
    known = {
        **{"voxels": Voxels(grid, NAMES), "bev": Bev(grid, NAMES), "seen": Seen(grid, NAMES)},
        "gaussians": GaussianSet(grid, NAMES, KIND),
    }
    identity = StoreIdentity("teacher", "", {}, grid, NAMES, described(known[name] for name in signals))
    writer = StoreWriter.open(path, identity, tokens, ["scene"] * 3)
    for index, token in enumerate(tokens[:2]):
        rng = np.random.default_rng(index)
        probs = rng.dirichlet(np.ones(18), grid.shape).astype(np.float32)
        covered = rng.random(grid.shape) < 0.7
        said = {
            "voxels": np.log(probs),
            "bev": Columns(probs.mean(2), covered.any(2)),
            "gaussians": gaussians_of(index),
            "seen": covered,
        }
        semantics = probs.argmax(-1).astype(np.uint8)
        writer.write(token, {name: said[name] for name in signals}, semantics, covered, DIGESTS)
    return TeacherStore(path)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "teacher.zarr")


def teacher(*stores, asked=("voxels", "columns"), signals=None, missing="skip", grid=GRID):
    return Stored("stored", stores, missing, signals, 1.0, grid, OCC3D_CLASSES, asked)


def stream(provider, mirror=Mirror()):
    return TeacherStream(Frames(mirror), [provider])


def test_what_is_asked_for_is_streamed_with_its_coverage(store):
    told = stream(teacher(store), Mirror(x=True))[1].teachers["stored"]
    assert told.taught
    assert told.signals.keys() == {"voxels", "bev"}
    np.testing.assert_array_equal(told.covered, store.coverage(TOKENS[1])[::-1])
    whole = store.told(TOKENS[1], ["voxels", "bev"], coverage=True).signals
    np.testing.assert_array_equal(told.signals["voxels"].codes, whole["voxels"].codes[::-1])
    np.testing.assert_array_equal(told.signals["voxels"].table, whole["voxels"].table)
    np.testing.assert_array_equal(told.signals["bev"].probs, whole["bev"].probs[::-1])


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ({"voxels"}, {"voxel_logits", "voxel_coverage"}),
        ({"columns"}, {"bev_probs", "voxel_coverage"}),
        ({"voxels", "columns"}, {"voxel_logits", "bev_probs", "voxel_coverage"}),
    ],
)
def test_nothing_else_is_read(store, asked, read):
    """Whatever else the sample holds may even be gone."""
    for array in Path(store.path).iterdir():
        if array.is_dir() and array.name not in read | {"checksums", "tokens", "scenes"}:
            (file,) = array.glob("c.1.*")
            file.unlink()
    assert stream(teacher(store, asked=asked, missing="error"))[1].teachers["stored"].taught


def test_gaussians_answer_where_they_are_told_to(store):
    told = stream(teacher(store, signals=["gaussians"]))[1].teachers["stored"]
    assert told.signals.keys() == {"gaussians"}
    assert told.covered is None
    assert len(told.signals["gaussians"].gaussians.means_G3) == 5


@pytest.mark.parametrize("signals", [None, ["gaussians"]])
def test_a_frame_without_a_teacher_says_nothing_and_fits_into_a_batch(store, signals):
    provider = teacher(store, signals=signals)
    frame = stack([stream(provider)[2], stream(provider)[1]]).to(torch.device("cpu"))
    assert frame.teachers["stored"].taught.tolist() == [False, True]
    answers = provider.taught(frame)
    assert answers.voxels(torch.arange(32, 64)).isfinite().all()
    if signals is None:
        assert not answers.covered(torch.arange(32)).any()


def test_a_batch_of_workers_is_what_the_store_holds(store):
    """Gaussians, of which every frame has another number, travel from loader processes to the device."""
    loader = torch.utils.data.DataLoader(
        stream(teacher(store, signals=["gaussians"])), batch_size=2, num_workers=1, collate_fn=stack, sampler=[0, 1]
    )
    (frame,) = loader
    for index, found in enumerate(frame.to(torch.device("cpu")).teachers["stored"].signals["gaussians"].gaussians):
        expected = store.told(TOKENS[index], ["gaussians"], coverage=False).signals["gaussians"].gaussians
        assert torch.equal(found.semantics_GS, expected.semantics_GS)


@pytest.mark.parametrize(("signals", "array"), [(None, "voxel_coverage"), (["gaussians"], "gaussians")])
def test_damage_is_an_error_or_silence(store, signals, array):
    (file,) = Path(store.path, array).glob("c.0.*")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DamagedSample, match=array):
        stream(teacher(store, signals=signals, missing="error"))[0]
    tolerant = stream(teacher(store, signals=signals))
    assert not tolerant[0].teachers["stored"].taught
    assert tolerant[1].teachers["stored"].taught


def test_several_teachers_speak_of_one_frame(store, tmp_path):
    other = Stored("other", [make_store(tmp_path / "o.zarr")], "skip", None, 0.5, GRID, OCC3D_CLASSES, ["voxels"])
    frame = TeacherStream(Frames(Mirror()), [teacher(store), other])[0]
    assert frame.teachers.keys() == {"stored", "other"}
    batch = stack([frame])
    assert (teacher(store).taught(batch).weight, other.taught(batch).weight) == (1.0, 0.5)


def test_gaussians_serve_a_student_on_any_grid(store, tmp_path):
    """Voxels do not."""
    on_occ3d = teacher(store, grid=OCC3D)
    assert {signal.name for signal in on_occ3d.answers.values()} == {"gaussians"}
    voxels_alone = make_store(tmp_path / "voxels.zarr", ("voxels", "bev"))
    with pytest.raises(InputError, match=r"no signal answers for .* on grid occ3d .* on grid tiny"):
        teacher(voxels_alone, grid=OCC3D)
    with pytest.raises(InputError, match="1 of 3 training keyframes"):
        teacher(store, grid=OCC3D, missing="error").check(dict.fromkeys(TOKENS, DIGESTS))


def test_what_a_store_does_not_hold_is_told_before_training(tmp_path):
    without = make_store(tmp_path / "without.zarr", ("voxels", "bev"))
    with pytest.raises(InputError, match=r"no signal of teachers\.stored\.signals=\[gaussians\] answers for"):
        teacher(without, signals=["gaussians"])
    with pytest.raises(InputError, match=r"answers for columns .* holds voxels on grid tiny"):
        teacher(make_store(tmp_path / "voxels.zarr", ("voxels",)))


class TestTheStoreThatIsMeant:
    """Without paths, the only one in the folder that is about these keyframes and answers what is asked."""

    def open(self, folder, paths=None, asked=("voxels", "columns"), tokens=TOKENS, unlabelled=()):
        pupil = Pupil(nn.Identity(), GRID, OCC3D_CLASSES, asked, {"seen"}, (False, False), tokens, unlabelled)
        return open_stored("stored", paths, str(folder), "skip", None, 1.0, pupil)

    def test_the_only_one_is_found(self, store, tmp_path):
        make_store(tmp_path / "others.zarr", tokens=["d" * 32, "e" * 32, "f" * 32])
        make_store(tmp_path / "voxels.zarr", ("voxels",))
        (tmp_path / "no-store").mkdir()
        assert [found.path for found in self.open(tmp_path).stores] == [store.path]

    def test_what_is_asked_about_frames_without_labels_is_asked_of_who_holds_some(self, tmp_path):
        seen = make_store(tmp_path / "seen.zarr", (*ALL, "seen"))
        assert set(self.open(tmp_path, unlabelled=TOKENS[1:]).answers) == {"voxels", "columns", "seen"}
        old = make_store(tmp_path / "old.zarr")
        assert [found.path for found in self.open(tmp_path, unlabelled=TOKENS[:1]).stores] == [seen.path]
        # none holds the last one
        for unlabelled in ((), TOKENS[2:]):
            assert set(self.open(tmp_path, [str(old.path)], unlabelled=unlabelled).answers) == {"voxels", "columns"}

    def test_the_only_one_is_told_what_it_lacks(self, store, tmp_path):
        told = (
            r"no signal answers for seen on grid tiny \(.*teacher.zarr holds voxels, bev, gaussians on grid tiny\): "
            r"dump into a new store.path with dump.signals=\[voxels,bev,gaussians,seen\], or set kd.unlabelled=all"
        )
        for paths in (None, [store.path]):
            with pytest.raises(InputError, match=told):
                self.open(tmp_path, paths, unlabelled=TOKENS)

    def test_of_two_none_is_chosen(self, store, tmp_path):
        second = make_store(tmp_path / "second.zarr")
        with pytest.raises(
            InputError, match=r"2 stores could teach: .*second\.zarr .*teacher\.zarr .*paths"
        ) as refused:
            self.open(tmp_path)
        assert "2 keyframes" in str(refused.value)
        assert [found.path for found in self.open(tmp_path, [second.path]).stores] == [second.path]

    def test_without_any_it_is_said_what_there_is(self, tmp_path):
        with pytest.raises(InputError, match=r"no store in .* \(there: none\): dump one with occ-dump"):
            self.open(tmp_path)
        make_store(tmp_path / "others.zarr", tokens=["d" * 32, "e" * 32, "f" * 32])
        with pytest.raises(InputError, match=r"there: .*others\.zarr"):
            self.open(tmp_path)
