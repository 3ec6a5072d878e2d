"""What cameras see through what a teacher finds: said in a dump, kept, mirrored and asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.classes import OCC3D_CLASSES
from distill.frame import Frame, Mirror, stack
from distill.grids import VoxelGrid
from distill.signals import SignalsOf, TeacherPrediction, described
from distill.signals.seen import Seen
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.teaching.stored import Stored

FREE, CAR = OCC3D_CLASSES.free, OCC3D_CLASSES.names.index("car")
GRID = VoxelGrid("tiny", "ego", (-4.0, -2.0, -1.0), 0.5, (16, 8, 4))
NAMES = OCC3D_CLASSES.names
SIGNAL = Seen(GRID, NAMES)
TOKENS = ["a" * 32, "b" * 32, "c" * 32]
# columns are what the camera's x, y and z axes are in the frame of the grid
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
SKYWARDS = np.eye(3)


def camera(position, axes=FORWARD):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = axes, position
    return pose


def frame_of(*cameras):
    """A batch of one, whose images of 24 x 48 pixels show what lies within 90 degrees to the sides."""
    intrinsics = torch.tensor([[24.0, 0, 24], [0, 24, 12], [0, 0, 1]]).expand(1, len(cameras), 3, 3)
    cam2ego = torch.from_numpy(np.stack(cameras)).float()[None]
    return Frame(
        token=TOKENS[:1], images=torch.zeros(1, len(cameras), 3, 24, 48), intrinsics=intrinsics, cam2ego=cam2ego
    )


def prediction_of(semantics_BXYZ, covered_BXYZ=None):
    sure_BXYZC = F.one_hot(semantics_BXYZ.long(), len(NAMES)).float()
    return TeacherPrediction((0.9 * sure_BXYZC + 0.1 / 18).log(), covered_BXYZ)


def wall(layer=12):
    """Free but for a wall across all of the grid."""
    semantics = torch.full((1, *GRID.shape), FREE)
    semantics[:, layer] = CAR
    return semantics


def say(*prediction_and_frame, signal=SIGNAL):
    return torch.from_numpy(np.stack(signal.say(*prediction_and_frame, FREE)))


def test_a_wall_is_seen_and_what_is_behind_it_is_not():
    (seen,) = say(prediction_of(wall()), frame_of(camera((0.0, 0.0, 0.0))))
    assert seen.dtype == torch.bool and seen.shape == GRID.shape
    assert seen[12].any(1).all()  # at 2 m, it is 4 m wide
    assert not seen[13:].any() and not seen[:8].any()
    assert seen[8:12, 4, 2].all()  # on the optical axis
    assert not seen[8, 0].any()  # beside the camera, out of its view


def test_without_a_surface_nothing_is_seen():
    assert not say(prediction_of(torch.full((1, *GRID.shape), FREE)), frame_of(camera((0.0, 0.0, 0.0)))).any()


def test_what_the_teacher_has_not_modelled_hides_nothing():
    """It is uniform there, so its argmax a class that stands for nothing."""
    semantics, covered = wall(), torch.ones(1, *GRID.shape, dtype=torch.bool)
    semantics[:, 10], covered[:, 10] = CAR, False
    frame = frame_of(camera((0.0, 0.0, 0.0)))
    assert torch.equal(say(prediction_of(semantics, covered), frame), say(prediction_of(wall()), frame))
    assert not torch.equal(say(prediction_of(semantics), frame), say(prediction_of(wall()), frame))


def test_a_camera_that_the_keyframe_lacks_sees_nothing():
    there, absent = camera((0.0, 0.0, 0.0)), camera((0.0, 0.0, 100.0), SKYWARDS)
    assert torch.equal(*(say(prediction_of(wall()), frame_of(*rig)) for rig in ((there, absent), (there,))))
    assert not say(prediction_of(wall()), frame_of(absent)).any()


def random_batch():
    """Two frames of three cameras each, and what is found in them."""
    random = np.random.default_rng(0)
    frames = []
    for _ in range(2):
        axes = np.linalg.qr(random.normal(size=(3, 3, 3)))[0]
        poses = [camera(random.uniform(-2, 2, 3) * (2, 1, 0.5), each) for each in axes]
        frames.append(frame_of(*poses))
    semantics = torch.from_numpy(np.where(random.random((2, *GRID.shape)) < 0.1, CAR, FREE))
    batch = Frame(
        token=TOKENS[:2],
        **{name: torch.cat([frame[name] for frame in frames]) for name in ("images", "intrinsics", "cam2ego")},
    )
    return batch, frames, semantics


def test_each_frame_of_a_batch_is_seen_by_its_own_cameras():
    batch, frames, semantics = random_batch()
    together = say(prediction_of(semantics), batch)
    alone = [say(prediction_of(semantics[row : row + 1]), frame)[0] for row, frame in enumerate(frames)]
    assert torch.equal(together, torch.stack(alone))
    assert all(0.05 < one.double().mean() < 0.95 for one in alone)


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flip_then_see_is_see_then_flip(flips):
    batch, _, semantics = random_batch()
    axes = [axis + 1 for axis, flip in enumerate(flips) if flip]
    mirrored = say(prediction_of(semantics.flip(axes)), batch.mirrored(Mirror(*flips)))
    assert torch.equal(mirrored, say(prediction_of(semantics), batch).flip(axes))
    assert not torch.equal(mirrored, say(prediction_of(semantics), batch))


def test_how_many_rays_made_it_is_kept():
    few = Seen(GRID, NAMES, rays_per_row=4)
    assert described([few])["seen"] == {"_target_": "distill.signals.seen.Seen", "rays_per_row": 4}
    assert SignalsOf(described([few]), GRID, NAMES, {}.__getitem__)["seen"] == few != SIGNAL
    scene = prediction_of(wall()), frame_of(camera((0.0, 0.0, 0.0)))
    assert say(*scene, signal=few).sum() < say(*scene).sum()


def make_store(path, held):
    """A store of what is seen of keyframes, by token."""
    identity = StoreIdentity("teacher", "", {}, GRID, NAMES, described([SIGNAL]))
    writer = StoreWriter.open(path, identity, TOKENS, ["scene"] * 3)
    for token, seen in held.items():
        said = {"seen": seen.numpy()}
        writer.write(token, said, np.zeros(GRID.shape, np.uint8), np.ones(GRID.shape, bool), np.zeros(8, np.uint32))
    return TeacherStore(path)


def test_stores_tell_it_mirrored_or_nothing_of_a_frame_that_none_holds(tmp_path):
    batch, _, semantics = random_batch()
    seen = say(prediction_of(semantics), batch)
    stores = [make_store(tmp_path / f"{row}.zarr", {TOKENS[row]: seen[row]}) for row in range(2)]
    provider = Stored("stored", stores, "skip", None, 1.0, GRID, OCC3D_CLASSES, {"seen"})
    frames = [Frame(token=token, teachers={"stored": provider.told(token)}) for token in TOKENS]
    teacher = provider.taught(stack([frame.mirrored(Mirror(x=True)) for frame in frames]))
    told = teacher.seen(torch.arange(3 * seen[0].numel())).view(3, *GRID.shape)
    assert told.dtype == torch.bool
    assert torch.equal(told[:2], seen.flip(1))
    assert not told[2].any()
