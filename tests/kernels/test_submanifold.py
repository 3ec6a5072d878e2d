"""Submanifold convolution against spconv's rules row by row, dense convolution, and the Triton twin."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.submanifold import find_neighbours, submanifold_conv


def definition(x, weight, bias, cell, shape, duplicates):
    """The rules of docs/formulas.md 6.8, one row and one tap at a time; rows beyond the shape alias as in spconv."""
    kernel = weight.shape[1]
    taps = weight.flatten(1, 3).double().unbind(1)
    steps = list(itertools.product(range(-(kernel // 2), kernel // 2 + 1), repeat=3))
    centre = len(steps) // 2
    places = [(a * shape[1] + b) * shape[2] + c for a, b, c in cell.tolist()]
    representative = {}
    for row, place in enumerate(places):
        if duplicates == "single" or place not in representative:
            representative[place] = row
    rows = x.double()
    out = rows @ taps[centre].T + bias.double()
    for k in range(centre):
        writers = {}
        for row, position in enumerate(cell.tolist()):
            a, b, c = (p - d for p, d in zip(position, steps[k], strict=True))
            place = (a * shape[1] + b) * shape[2] + c
            inside = all(0 <= p < extent for p, extent in zip((a, b, c), shape, strict=True))
            if inside and place in representative:
                other = representative[place]
                out[row] += taps[2 * centre - k] @ rows[other]
                writers.setdefault(other, []).append(row)
        for other, from_rows in writers.items():
            for row in from_rows if duplicates == "sum" else from_rows[-1:]:
                out[other] += taps[k] @ rows[row]
    return out.float()


def inputs(seed, rows, shape, kernel=3, channels=(4, 7), beyond=0):
    generator = torch.Generator().manual_seed(seed)
    cell = torch.stack([torch.randint(extent + beyond, (rows,), generator=generator) for extent in shape], 1)
    x = torch.randn(rows, channels[0], generator=generator)
    weight = torch.randn(channels[1], kernel, kernel, kernel, channels[0], generator=generator)
    return x, weight, torch.randn(channels[1], generator=generator), cell


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 40),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    kernel=st.sampled_from([1, 3, 5]),
    beyond=st.integers(0, 1),
    duplicates=st.sampled_from(["single", "sum"]),
)
def test_matches_the_rules(seed, rows, shape, kernel, beyond, duplicates):
    x, weight, bias, cell = inputs(seed, rows, shape, kernel, beyond=beyond)
    found = submanifold_conv(x, weight, bias, find_neighbours(cell, shape, kernel, duplicates))
    torch.testing.assert_close(found, definition(x, weight, bias, cell, shape, duplicates), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cells", "duplicates", "expected"),
    [
        # two rows, then one behind them: it receives from the last of them, or from both
        ([0, 0, 1], "single", [140, 240, 402]),
        ([0, 0, 1], "sum", [140, 240, 403]),
        # two rows behind one: the last or the first of them represents both
        ([1, 1, 0], "single", [100, 204, 420]),
        ([1, 1, 0], "sum", [104, 200, 410]),
    ],
)
def test_known_answers(cells, duplicates, expected):
    cell = torch.tensor([[0, 0, z] for z in cells])
    weight = torch.zeros(1, 3, 3, 3, 1)
    weight[0, 1, 1] = torch.tensor([1.0, 100, 10]).unsqueeze(1)
    neighbours = find_neighbours(cell, (1, 1, 2), 3, duplicates)
    out = submanifold_conv(torch.tensor([[1.0], [2], [4]]), weight, None, neighbours)
    assert out.flatten().tolist() == expected


@pytest.mark.parametrize("duplicates", ["single", "sum"])
def test_one_row_per_voxel_is_a_dense_convolution(duplicates):
    shape = (5, 4, 6)
    generator = torch.Generator().manual_seed(0)
    place = torch.randperm(120, generator=generator)[:70]
    cell = torch.stack(torch.unravel_index(place, shape), 1)
    x, weight, bias, _ = inputs(0, 70, shape, 5)
    dense = torch.zeros(4, *shape)
    dense[:, *cell.T] = x.T
    expected = F.conv3d(dense[None], weight.permute(0, 4, 1, 2, 3), bias, padding=2)[0][:, *cell.T].T
    found = submanifold_conv(x, weight, bias, find_neighbours(cell, shape, 5, duplicates))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_all_rows_beyond_a_flat_shape_keep_to_themselves():
    x, weight, bias, cell = inputs(1, 6, (3, 3, 1))
    found = submanifold_conv(x, weight, bias, find_neighbours(cell, (2, 2, 0), 3, "single"))
    torch.testing.assert_close(found, x @ weight[:, 1, 1, 1].T + bias)


TWINS = """
import torch
from kernels.submanifold import reference, triton as twin

for seed, rows, sources, taps, channels in ((0, 7, 5, 4, (3, 6)), (1, 130, 90, 3, (40, 70)), (2, 64, 10, 13, (32, 16))):
    torch.manual_seed(seed)
    x, weight = torch.randn(sources, channels[0]), torch.randn(taps, *channels)
    source = torch.randint(-1, sources, (taps, rows), dtype=torch.int32)
    source[1] = -1
    for x_strided in (x, x.T.contiguous().T):
        found, expected = (side.gather_gemm(x_strided, source, weight) for side in (twin, reference))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("duplicates", ["single", "sum"])
def test_gpu_matches_cpu_and_repeats_itself(duplicates):
    shape = (20, 20, 8)
    x, weight, bias, cell = inputs(2, 2000, shape, 5, (128, 128))
    expected = submanifold_conv(x, weight, bias, find_neighbours(cell, shape, 5, duplicates))
    x, weight, bias, cell = (tensor.cuda() for tensor in (x, weight, bias, cell))
    first, second = (submanifold_conv(x, weight, bias, find_neighbours(cell, shape, 5, duplicates)) for _ in range(2))
    assert torch.equal(first, second)
    # sums of up to 16 000 products of normal numbers: their size is about 100
    torch.testing.assert_close(first.cpu(), expected, rtol=1e-4, atol=1e-3)
