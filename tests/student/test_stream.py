"""Frames joined with a tiny store of voxels and Gaussians."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from distill.augment import Transform
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.gaussians import Gaussians
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.nuscenes.frames import collate, to_device
from distill.store import DamagedSample, GaussianKind, StoreIdentity, StoreWriter, TeacherStore
from distill.teaching import teaching
from student.stream import TeacherStream, open_stores

GRID = VoxelGrid("tiny", "ego", (-2.0, -2.0, -1.0), 1.0, (4, 4, 2))
TOKENS = ["a" * 32, "b" * 32, "c" * 32]
KIND = GaussianKind(6, "probabilistic", 4.0, "stable", SURROUNDOCC)


class Frames:
    """What a stream needs of a `FrameDataset`."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return len(TOKENS)

    def load(self, index):
        pose = np.eye(4, dtype=np.float32)
        pose[:3, 3] = (0.5, 0.25, 0.1 * index)
        return {"token": TOKENS[index], "lidar2ego": pose}, self.transform


def gaussians_of(index):
    random = torch.Generator().manual_seed(index)
    count = 4 + index
    return Gaussians(
        torch.rand(count, 3, generator=random) * 4 - 2,
        torch.rand(count, 3, generator=random) + 0.5,
        torch.nn.functional.normalize(torch.randn(count, 4, generator=random), dim=1),
        torch.rand(count, generator=random),
        torch.nn.functional.pad(torch.randn(count, 17, generator=random).softmax(1), (0, 1)),
        KIND.form,
        KIND.reach,
        KIND.det,
        KIND.space,
    )


DIGESTS = np.zeros(8, np.uint32)


def make_store(path, voxels=True, kind=KIND, grid=GRID):
    """A store of which the last sample is missing."""
    identity = StoreIdentity("teacher", "", {}, grid, OCC3D_CLASSES.names, voxels, kind)
    writer = StoreWriter.open(path, identity, TOKENS, ["scene"] * 3)
    for index, token in enumerate(TOKENS[:2]):
        rng = np.random.default_rng(index)
        probs = rng.dirichlet(np.ones(18), grid.shape).astype(np.float32)
        covered = rng.random(grid.shape) < 0.7
        writer.write(token, np.log(probs), probs.mean(2), covered, kind and gaussians_of(index), DIGESTS)
    return TeacherStore(path)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "teacher.zarr")


def stream(store, render, missing="skip", flip_x=False):
    transform = Transform(images=(), flip_x=flip_x, flip_y=False)
    return TeacherStream(Frames(transform), [store], missing, render)


def test_voxels_are_streamed_with_their_coverage(store):
    sample = stream(store, render=False, flip_x=True)[1]
    assert sample["taught"]
    np.testing.assert_array_equal(sample["teacher_covered"], store.coverage(TOKENS[1])[::-1])
    np.testing.assert_array_equal(sample["teacher_voxel"], store.codes(TOKENS[1])[::-1])
    np.testing.assert_array_equal(sample["teacher_bev"], store.bev_probs(TOKENS[1])[::-1])
    np.testing.assert_array_equal(sample["teacher_table"], store.log_prob_table)


def test_gaussians_are_streamed_instead(store):
    sample = stream(store, render=True)[1]
    assert sample.keys() == {"token", "lidar2ego", "teacher_gaussians", "taught"}
    assert torch.equal(sample["teacher_gaussians"].means_G3, store.gaussians(TOKENS[1]).means_G3)
    assert len(sample["teacher_gaussians"].means_G3) == 5


@pytest.mark.parametrize("render", [False, True])
def test_a_frame_without_a_teacher_says_nothing_and_fits_into_a_batch(store, render):
    silent, taught = (stream(store, render)[index] for index in (2, 1))
    assert not silent["taught"]
    assert silent.keys() == taught.keys()
    batch = to_device(collate([silent, taught]), torch.device("cpu"))
    assert batch["taught"].tolist() == [False, True]
    needed = torch.zeros(2, *GRID.shape, dtype=torch.bool)
    needed[1] = True
    teacher = teaching(batch, needed, GRID, OCC3D_CLASSES.free)
    assert teacher.voxels(torch.arange(32, 64)).isfinite().all()
    if not render:
        assert not teacher.covered(torch.arange(32)).any()


def test_a_batch_of_workers_is_what_the_store_holds(store):
    """Gaussians, of which every frame has another number, travel from loader processes to the device."""
    loader = torch.utils.data.DataLoader(
        stream(store, render=True), batch_size=2, num_workers=1, collate_fn=collate, sampler=[0, 1]
    )
    (batch,) = loader
    for index, gaussians in enumerate(to_device(batch, torch.device("cpu"))["teacher_gaussians"]):
        assert torch.equal(gaussians.semantics_GS, store.gaussians(TOKENS[index]).semantics_GS)


@pytest.mark.parametrize(("render", "array"), [(False, "voxel_coverage"), (True, "gaussians")])
def test_damage_is_an_error_or_silence(store, render, array):
    (file,) = (store.path / array).glob("c.0.*")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DamagedSample, match=array):
        stream(store, render, missing="error")[0]
    assert not stream(store, render)[0]["taught"]
    assert stream(store, render)[1]["taught"]


def config(store, render, missing="skip", grid="distill.grids.OCC3D"):
    objects = {"grid": grid, "classes": "distill.classes.OCC3D_CLASSES"}
    nodes = {name: {"_target_": "hydra.utils.get_object", "path": path} for name, path in objects.items()}
    paths = [str(store.path)]
    return OmegaConf.create(
        {**nodes, "kd": {"name": "kd", "loss": {}}, "store": {"paths": paths, "missing": missing, "render": render}}
    )


def test_gaussians_serve_a_student_on_any_grid(store):
    """Voxels do not."""
    (opened,) = open_stores(config(store, render=True), TOKENS)
    assert opened.path == store.path
    with pytest.raises(InputError, match="is on grid"):
        open_stores(config(store, render=False), TOKENS)
    with pytest.raises(InputError, match="1 of 3 training keyframes"):
        open_stores(config(store, render=True, missing="error"), TOKENS)


def test_what_a_store_does_not_hold_is_told_before_training(tmp_path):
    only = make_store(tmp_path / "only.zarr", voxels=False)
    without = make_store(tmp_path / "without.zarr", kind=None)
    with pytest.raises(InputError, match=r"store\.render=true"):
        open_stores(config(only, render=False), TOKENS)
    with pytest.raises(InputError, match=r"store\.render=false"):
        open_stores(config(without, render=True), TOKENS)
