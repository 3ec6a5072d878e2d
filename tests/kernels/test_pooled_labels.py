"""Labels at coarser resolutions: upstream's own, blocks made by hand, and the twins against a plain loop."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.dispatch import only
from kernels.pooled_labels import UNKNOWN, pooled_labels

FREE, SCALES = 17, (2, 4, 8)


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """What MonoOcc's script makes of a keyframe, and that keyframe."""
    golden = np.load(shared / "fixtures/signals/monoocc_labels.npz")
    return golden, torch.from_numpy(inputs.case_labels(int(golden["seed"]))["labels"])


@pytest.mark.parametrize("twin", ["reference", "cpu"])
@pytest.mark.parametrize("size", SCALES)
def test_upstream(upstream, size, twin):
    golden, labels_XYZ = upstream
    with only(twin):
        np.testing.assert_array_equal(pooled_labels(labels_XYZ, size, FREE).numpy(), golden[f"ds{size}"])


def test_each_scale_is_of_the_full_resolution(upstream):
    golden, labels_XYZ = upstream
    twice = pooled_labels(pooled_labels(labels_XYZ, 2, FREE), 2, FREE)
    assert (twice != pooled_labels(labels_XYZ, 4, FREE)).sum() == golden["pyramid_differs"]


@pytest.mark.parametrize("twin", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("size", "voxels", "pooled"),
    [
        (2, {4: 1, FREE: 7}, 4),  # one car
        (2, {UNKNOWN: 8}, UNKNOWN),
        (2, {FREE: 4, UNKNOWN: 4}, UNKNOWN),
        (2, {FREE: 5, UNKNOWN: 3}, FREE),
        (2, {FREE: 3, UNKNOWN: 5}, UNKNOWN),
        (2, {7: 3, 4: 3, FREE: 2}, 4),  # of equals the lower id
        (2, {16: 1, 0: 1, UNKNOWN: 6}, 0),
        (2, {FREE: 8}, FREE),
        (2, {0: 1, FREE: 7}, 0),  # others are occupied
        (2, {9: 2, 2: 2, 5: 2, FREE: 2}, 2),
        (2, {10: 1, UNKNOWN: 7}, 10),
        (2, {FREE: 7, UNKNOWN: 1}, FREE),
        (4, {FREE: 61, 4: 3}, FREE),  # 95.3 % are nothing
        (4, {FREE: 60, 4: 4}, 4),  # 93.8 %
        (4, {FREE: 30, UNKNOWN: 31, 4: 3}, UNKNOWN),
        (4, {FREE: 31, UNKNOWN: 30, 4: 3}, FREE),
        (4, {4: 2, 3: 2, FREE: 60}, 3),
        (8, {FREE: 487, 4: 25}, FREE),
        (8, {FREE: 486, 4: 26}, 4),
        (8, {8: 13, 6: 13, FREE: 243, UNKNOWN: 243}, 6),
    ],
)
def test_blocks_by_hand(size, voxels, pooled, twin):
    """In whatever order their voxels come."""
    block = torch.tensor([label for label, count in voxels.items() for _ in range(count)], dtype=torch.uint8)
    with only(twin):
        for order in (block, block.flip(0), block[torch.randperm(len(block), generator=torch.manual_seed(0))]):
            assert pooled_labels(order.view(size, size, size), size, FREE).item() == pooled


def by_hand(labels_XYZ, size):
    """The rule as it is said, block by block."""
    pooled = np.zeros([count // size for count in labels_XYZ.shape], np.uint8)
    for i, j, k in np.ndindex(pooled.shape):
        x, y, z = i * size, j * size, k * size
        counts = Counter(labels_XYZ[x : x + size, y : y + size, z : z + size].ravel().tolist())
        empty, unknown = counts.pop(FREE, 0), counts.pop(UNKNOWN, 0)
        if empty + unknown > 0.95 * size**3:
            pooled[i, j, k] = FREE if empty > unknown else UNKNOWN
        else:
            pooled[i, j, k] = min(counts, key=lambda label: (-counts[label], label))
    return pooled


def labels(seed, shape):
    """Mostly nothing, with a few classes of which many are equally frequent."""
    random = np.random.default_rng(seed)
    nothing = random.choice([FREE, UNKNOWN], shape, p=[share := random.random(), 1 - share])
    occupied = random.random(shape) < random.choice([0.01, 0.05, 0.1, 0.5, 1.0])
    return torch.from_numpy(
        np.where(occupied, random.choice(random.integers(0, 17, 3), shape), nothing).astype(np.uint8)
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from(SCALES), blocks=st.tuples(*[st.integers(1, 3)] * 3))
def test_twins_and_a_plain_loop_agree(seed, size, blocks):
    labels_XYZ = labels(seed, [size * count for count in blocks])
    expected = by_hand(labels_XYZ.numpy(), size)
    for twin in ("reference", "cpu"):
        with only(twin):
            np.testing.assert_array_equal(pooled_labels(labels_XYZ, size, FREE).numpy(), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from(SCALES), axes=st.sets(st.integers(0, 2)))
def test_a_mirrored_world_has_mirrored_labels(seed, size, axes):
    labels_XYZ = labels(seed, [2 * size, size, 3 * size])
    mirrored = pooled_labels(labels_XYZ.flip(tuple(axes)), size, FREE)
    assert torch.equal(mirrored, pooled_labels(labels_XYZ, size, FREE).flip(tuple(axes)))


@pytest.mark.parametrize("twin", ["reference", "cpu"])
def test_frames_of_a_batch_are_pooled_one_by_one(twin):
    batch = torch.stack([labels(seed, [4, 4, 4]) for seed in range(3)])
    with only(twin):
        expected = torch.stack([pooled_labels(each, 2, FREE) for each in batch])
        assert torch.equal(pooled_labels(batch, 2, FREE), expected)
        assert torch.equal(pooled_labels(batch.transpose(1, 2), 2, FREE), expected.transpose(1, 2))  # not contiguous


def test_blocks_have_to_fill_the_grid():
    with pytest.raises(ValueError, match=r"blocks of 4 \^ 3 voxels do not fill \(8, 8, 6\)"):
        pooled_labels(torch.zeros(8, 8, 6, dtype=torch.uint8), 4, FREE)
