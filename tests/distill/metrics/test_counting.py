import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.metrics.counting import count_confusion

SHAPE = (5, 4, 3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), classes=st.sampled_from([OCC3D_CLASSES, SURROUNDOCC_CLASSES]), groups=st.integers(1, 4)
)
def test_counts_each_voxel_once(seed, classes, groups):
    random = np.random.default_rng(seed)
    prediction, semantics = random.integers(0, 18, SHAPE, np.uint8), random.choice([*range(18), 200, 255], SHAPE)
    mask, group = random.random(SHAPE) < 0.7, random.choice([*range(groups), 255], SHAPE)
    expected = np.zeros((groups, 18, 18), np.int64)
    for p, s, m, g in zip(prediction.flat, semantics.flat, mask.flat, group.flat, strict=True):
        if m and g < groups and s < 18 and s != classes.ignored:
            expected[g, s, p] += 1
    volumes = [torch.from_numpy(a) for a in (prediction, semantics.astype(np.uint8), mask)]
    found = count_confusion(*volumes, classes, torch.from_numpy(group.astype(np.uint8)), groups)
    assert found.dtype == torch.int64 and np.array_equal(found, expected)
    transposed = [volume.transpose(0, 2).contiguous().transpose(0, 2) for volume in volumes]
    assert np.array_equal(count_confusion(*transposed, classes)[0], count_confusion(*volumes, classes)[0])


def test_a_prediction_beyond_the_class_set_matters_only_where_it_is_counted():
    prediction, semantics = torch.full(SHAPE, 18, dtype=torch.uint8), torch.zeros(SHAPE, dtype=torch.uint8)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    with pytest.raises(InputError, match="class 18, but occ3d has 18 classes"):
        count_confusion(prediction, semantics, mask, OCC3D_CLASSES)
    assert count_confusion(prediction, semantics, ~mask, OCC3D_CLASSES).sum() == 0
    assert count_confusion(prediction, semantics, mask, SURROUNDOCC_CLASSES).sum() == 0  # all labelled noise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_counts_what_the_cpu_counts():
    random = np.random.default_rng(0)
    volumes = [torch.from_numpy(random.integers(0, high, (40, 40, 16), np.uint8)) for high in (18, 20, 2, 5)]
    prediction, semantics, mask, group = volumes[0], volumes[1], volumes[2].bool(), volumes[3]
    cpu = count_confusion(prediction, semantics, mask, OCC3D_CLASSES, group, 4)
    on_gpu = [volume.cuda() for volume in (prediction, semantics, mask, group)]
    assert torch.equal(count_confusion(*on_gpu[:3], OCC3D_CLASSES, on_gpu[3], 4).cpu(), cpu)
