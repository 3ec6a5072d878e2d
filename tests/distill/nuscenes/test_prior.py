"""What cameras see as a rule: counted in keyframes with labels, given to those without."""

import pickle

import numpy as np
import pytest

from distill.augment import Augmentation
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.labels import WithPrior, camera_prior
from distill.nuscenes.withheld import Withheld

MIRRORED = Augmentation(resize=(1.0, 1.3), image_flip=0.5, rotation=0.0, colour=0.2, bev_flip=1.0)


class Masks:
    """Labels whose keyframes are numbers."""

    def __init__(self, mask_camera):
        self.mask_camera = mask_camera
        self.grid = VoxelGrid("tiny", "ego", (0.0, 0.0, 0.0), 1.0, mask_camera.shape[1:])
        self.read_of = []

    def read(self, keyframe):
        self.read_of.append(keyframe)
        return {"mask_camera": self.mask_camera[keyframe]}


def test_that_of_uniocc(shared, inputs):
    golden = np.load(shared / "fixtures/signals/uniocc.npz")
    masks = inputs.case_uniocc(int(golden["seed"]))["masks"]
    found = camera_prior(Masks(masks), range(len(masks)))
    np.testing.assert_array_equal(found, golden["prior_mask"])
    assert found.sum() == 51 and (golden["prior"] == 0.2).sum() == golden["prior_exact_ties"] == 30


@pytest.mark.parametrize("count", [1, 5, 10, 200])
def test_a_fifth_is_not_enough(count):
    masks = np.zeros((count, 2, 2, 2), bool)
    masks[: count // 5, 0] = True
    masks[: count // 5 + 1, 1] = True
    assert camera_prior(Masks(masks), range(count)).any((1, 2)).tolist() == [False, True]


def test_of_many_keyframes_200_are_read_from_the_first_to_the_last():
    labels = Masks(np.ones((1001, 1, 1, 1), bool))
    camera_prior(labels, range(1001))
    assert labels.read_of[:3] == [0, 5, 10] and labels.read_of[-1] == 1000
    assert len(set(labels.read_of)) == 200


def test_without_labels_there_is_none():
    with pytest.raises(InputError, match=r"^kd\.unlabelled=prior is .* none has any: set kd\.unlabelled=seen or all$"):
        camera_prior(Masks(np.ones((1, 1, 1, 1), bool)), [])


def test_keyframes_without_labels_get_it_and_it_is_mirrored_with_them(labelled):
    index, labels = labelled
    keyframes, withheld = index.keyframes("all"), Withheld(labels, index.scenes, 0.5, seed=0)
    prior = camera_prior(withheld, [each for each in keyframes if each.scene not in withheld.scenes])
    assert 0.1 < prior.mean() < 0.9
    source = pickle.loads(pickle.dumps(WithPrior(withheld, prior)))
    assert source.grid == labels.grid
    assert [source.path(each) for each in keyframes] == [withheld.path(each) for each in keyframes]

    frames, others = (FrameDataset(keyframes, (48, 112), None, False, each, MIRRORED, 0) for each in (source, withheld))
    hidden = [number for number, each in enumerate(keyframes) if each.scene in withheld.scenes]
    assert 0 < len(hidden) < len(keyframes)
    for number in range(len(keyframes)):
        found, mirror = frames.load(number)
        frame, other = frames[number], others[number]
        assert mirror.x or mirror.y
        assert frame.labelled == other.labelled == (number not in hidden)
        np.testing.assert_array_equal(frame.semantics, other.semantics)
        np.testing.assert_array_equal(frame.mask_lidar, other.mask_lidar)
        if number in hidden:
            np.testing.assert_array_equal(found.mask_camera, prior)
            axes = [axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
            np.testing.assert_array_equal(frame.mask_camera, np.flip(prior, axes))
        else:
            np.testing.assert_array_equal(frame.mask_camera, other.mask_camera)
