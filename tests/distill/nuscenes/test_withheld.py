"""Labels that are withheld, as if their files were not there."""

import pickle
import random
from itertools import pairwise

import pytest
from same import assert_same

from distill.augment import Augmentation
from distill.errors import InputError
from distill.nuscenes.frames import Draw, FrameDataset
from distill.nuscenes.inventory import SOURCES, place_of_labels, take_stock
from distill.nuscenes.labels import Occ3DLabels, SurroundOccLabels
from distill.nuscenes.withheld import Withheld

SCENES = [f"scene-{number:04d}" for number in range(16)]
STRONG = Augmentation(resize=(1.0, 1.3), image_flip=0.5, rotation=0.0, colour=0.2, bev_flip=0.5)


def withheld(share, seed=0, scenes=SCENES):
    return Withheld(Occ3DLabels(None), scenes, share, seed).scenes


def test_which_scenes_depends_on_names_share_and_seed_alone():
    # known for good: a run that goes on after an update must withhold what it withheld before
    assert sorted(withheld(0.25)) == ["scene-0004", "scene-0005", "scene-0011", "scene-0015"]
    shuffled = SCENES * 3
    random.Random(0).shuffle(shuffled)
    assert withheld(0.25, scenes=shuffled) == withheld(0.25)
    assert withheld(0.25, seed=1) != withheld(0.25)


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_share_withholds_what_a_smaller_one_does_and_more(seed):
    nested = [withheld(share / 16, seed) for share in range(1, 16)]
    assert [len(scenes) for scenes in nested] == list(range(1, 16))
    assert all(less < more for less, more in pairwise(nested))


def test_a_share_is_rounded_to_whole_scenes():
    assert [len(withheld(share, scenes=SCENES[:5])) for share in (0.1, 0.29, 0.3, 0.5, 0.89)] == [1, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("share", "scenes", "told"),
    [
        (0.03, SCENES, "share=0.03 withholds 0 of 16 training scenes"),
        (0.97, SCENES, "share=0.97 withholds 16 of 16 training scenes"),
        (0.5, SCENES[:1] * 6, "share=0.5 withholds 1 of 1 training scenes"),
    ],
)
def test_every_scene_or_none_is_refused(share, scenes, told):
    with pytest.raises(InputError, match=f"^trainer.withheld: {told}: choose"):
        withheld(share, scenes=scenes)


@pytest.mark.parametrize("epoch", range(4))
def test_a_withheld_keyframe_is_one_without_a_label_file(labelled, epoch):
    """Whatever is drawn; the others are as they were."""
    index, labels = labelled
    source = pickle.loads(pickle.dumps(Withheld(labels, index.scenes, 0.5, seed=0)))
    keyframes = index.keyframes("all")
    hidden = [keyframe for keyframe in keyframes if keyframe.scene in source.scenes]
    assert 0 < len(hidden) < len(keyframes)

    def frames(labels):
        dataset = FrameDataset(keyframes, (48, 112), 16, True, labels, STRONG, seed=0)
        return [dataset[Draw(at, epoch)] for at in range(len(dataset))]

    found, whole = frames(source), frames(labels)
    for frame, before in zip(found, whole, strict=True):
        if frame.scene not in source.scenes:
            assert frame.labelled
            assert_same(frame, before)
        else:
            assert not frame.labelled
            assert (frame.semantics == 17).all()
            assert not frame.mask_camera.any() and not frame.mask_lidar.any()
    for keyframe in hidden:
        labels.path(keyframe).unlink()
    for frame, without in zip(found, frames(labels), strict=True):
        assert_same(frame, without)


def test_what_is_withheld_is_not_taken_stock_of(labelled):
    """Not even whether its file is broken; images, scans and calibration are known as before."""
    index, labels = labelled
    keyframes, source = index.keyframes("all"), Withheld(labels, index.scenes, 0.5, seed=0)
    whole = take_stock(keyframes, labels, 17, cameras=True, lidar=True)
    hidden = [keyframe for keyframe in keyframes if keyframe.scene in source.scenes]
    labels.path(hidden[0]).write_bytes(b"")
    stock = take_stock(keyframes, source, 17, cameras=True, lidar=True)
    assert stock.labelled == set(keyframes.tokens) - {keyframe.token for keyframe in hidden}
    assert stock.identity(SOURCES) != whole.identity(SOURCES)
    assert stock.identity(SOURCES[:-1]) == whole.identity(SOURCES[:-1])
    for keyframe in hidden:
        labels.path(keyframe).unlink()
    assert take_stock(keyframes, labels, 17, cameras=True, lidar=True).identity(SOURCES) == stock.identity(SOURCES)


def test_labels_are_looked_for_where_they_are_not_withheld(labelled):
    index, labels = labelled
    source = Withheld(labels, index.scenes, 0.5, seed=4)
    assert source.scenes == {"scene-0001"}
    stock = take_stock(index.keyframes("all"), source, 17, cameras=True, lidar=True)
    assert place_of_labels(stock, source) == f"looked for {labels.path(index.keyframe('early'))}"
    assert "no labels are configured" in place_of_labels(stock, SurroundOccLabels(None))
