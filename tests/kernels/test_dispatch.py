"""Which twin of an op runs where."""

import pytest
import torch

from kernels.dispatch import only, twin
from kernels.farthest_points import farthest_points

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("bev_pool", "reference"),
        ("deformable_aggregation", "reference"),
        ("farthest_points", "cpu"),
        ("observe", "cpu"),
        ("ray_cast", "cpu"),
        ("ray_march", "cpu"),
        ("splat", "cpu"),
        ("stored_kl", "reference"),
        ("submanifold", "reference"),
    ],
)
def test_the_cpu_runs_its_own_twin_where_there_is_one(op, expected):
    assert twin(f"kernels.{op}", CPU).__name__ == f"kernels.{op}.{expected}"


def test_one_twin_can_be_asked_for_and_ends_with_the_block():
    with only("reference"):
        assert twin("kernels.splat", CPU).__name__ == "kernels.splat.reference"
        with pytest.raises(ValueError, match="cannot choose"), only("cpu"):
            farthest_points(torch.zeros(2, 3), 3, 1)
        assert twin("kernels.splat", CPU).__name__ == "kernels.splat.reference"
    assert twin("kernels.splat", CPU).__name__ == "kernels.splat.cpu"


def test_in_the_interpreter_the_ops_run_their_triton_twins(interpret):
    interpret("""
import torch
from kernels.dispatch import only, twin
from kernels.farthest_points import farthest_points

assert twin("kernels.farthest_points", torch.device("cpu")).__name__ == "kernels.farthest_points.triton"
assert twin("kernels.observe", torch.device("cpu")).__name__ == "kernels.observe.cpu"  # it has none
cloud = torch.rand(70, 3)
found = farthest_points(cloud, 9, 2)
with only("reference"):
    assert torch.equal(found, farthest_points(cloud, 9, 2))
""")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_runs_triton():
    assert twin("kernels.splat", torch.device("cuda", 0)).__name__ == "kernels.splat.triton"
