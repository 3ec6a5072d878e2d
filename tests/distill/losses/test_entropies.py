"""Cross-entropies of other forms than the plain one: upstream's numbers, known answers, and what is undefined there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made import FREE, B, C, X, Y, Z, lesson, taught_frame
from torchvision.ops import sigmoid_focal_loss

from distill.classes import OCC3D_CLASSES
from distill.losses.supervised import (
    DecoupledCrossEntropy,
    FocalLoss,
    cross_entropy,
    decoupled_cross_entropy,
    focal_loss,
)

OF_LABELS = {"weight": 1.0, "balance": "log", "mask": "camera", "classes": OCC3D_CLASSES}
# UniOcc's count the validation split, too (docs/formulas.md 2.1)
OF_BOTH_SPLITS = [1163161, 2309034, 188743, 2997643, 20317180, 852476, 243808, 2457947, 497017]
OF_BOTH_SPLITS += [2731022, 7224789, 214411435, 5565043, 63191967, 76098082, 128860031, 141625221, 2307405309]


@pytest.fixture
def logits():
    random = torch.Generator().manual_seed(1)
    return torch.randn(B, X, Y, Z, C, generator=random, dtype=torch.float64).requires_grad_()


class TestFocal:
    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
    def test_two_classes_are_torchvisions(self, gamma):
        """A softmax over (0, x) is a sigmoid of x."""
        x_V = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        labels_V = torch.arange(40) % 2
        log_probs_V2 = torch.stack([torch.zeros_like(x_V), x_V], -1).log_softmax(-1)
        value = focal_loss(log_probs_V2, labels_V, torch.ones(2), gamma)
        expected = sigmoid_focal_loss(x_V, labels_V.double(), alpha=-1, gamma=gamma, reduction="mean")
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, x_V), torch.autograd.grad(expected, x_V))

    def test_by_a_plain_loop(self):
        random = torch.Generator().manual_seed(0)
        logits_VC = torch.randn(20, 5, dtype=torch.float64, generator=random)
        labels_V, weights_C = torch.randint(0, 5, (20,), generator=random), torch.rand(5, generator=random).double()
        total = sum(
            weights_C[y] * (1 - row.softmax(0)[y]) ** 3 * -math.log(row.softmax(0)[y])
            for row, y in zip(logits_VC, labels_V.tolist(), strict=True)
        )
        value = focal_loss(logits_VC.log_softmax(-1), labels_V, weights_C, 3.0)
        torch.testing.assert_close(value, total / weights_C[labels_V].sum())

    def test_without_gamma_it_is_the_cross_entropy(self, logits):
        frame = taught_frame()
        log_probs_VC, labels_V = logits[frame.mask_camera].log_softmax(-1), frame.semantics[frame.mask_camera].long()
        value = FocalLoss(0.0, **OF_LABELS)(lesson(frame, logits))
        weights_C = torch.from_numpy(OCC3D_CLASSES.weights("log"))
        torch.testing.assert_close(value, cross_entropy(log_probs_VC, labels_V, weights_C))

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_quite_sure_and_right_is_zero_with_zero_gradient(self, gamma):
        logits_VC = torch.tensor([[200.0, 0.0]], requires_grad=True)
        value = focal_loss(logits_VC.log_softmax(-1), torch.tensor([0]), torch.ones(2), gamma)
        assert value == 0
        assert not torch.autograd.grad(value, logits_VC)[0].any()

    def test_quite_wrong_is_finite(self):
        logits_VC = torch.tensor([[200.0, 0.0]], requires_grad=True)
        value = focal_loss(logits_VC.log_softmax(-1), torch.tensor([1]), torch.ones(2), 2.0)
        assert value == 200
        assert torch.autograd.grad(value, logits_VC)[0].tolist() == [[1, -1]]

    def test_gradient(self):
        random = torch.Generator().manual_seed(0)
        logits_VC = torch.randn(6, 4, dtype=torch.float64, generator=random).requires_grad_()
        labels_V, weights_C = torch.randint(0, 4, (6,), generator=random), torch.rand(4, generator=random)
        assert torch.autograd.gradcheck(lambda x: focal_loss(x.log_softmax(-1), labels_V, weights_C, 2.0), logits_VC)

    def test_no_voxel_is_zero_with_zero_gradient(self):
        logits_VC = torch.zeros(0, 3, requires_grad=True)
        value = focal_loss(logits_VC.log_softmax(-1), torch.zeros(0, dtype=torch.long), torch.ones(3), 2.0)
        value.backward()
        assert value == 0
        assert logits_VC.grad.shape == (0, 3)


class TestDecoupled:
    @pytest.fixture
    def upstream(self, shared, inputs):
        """UniOcc's numbers, the module that makes their inputs, and these."""
        golden = np.load(shared / "fixtures/signals/uniocc.npz")
        case = {name: torch.tensor(value) for name, value in inputs.case_uniocc(int(golden["seed"])).items()}
        return golden, inputs, case

    @pytest.mark.parametrize(("part", "name"), [(0, "geo"), (1, "sem")])
    def test_upstream(self, upstream, part, name):
        golden, inputs, case = upstream
        pair, semantic = (case[each].clone().requires_grad_() for each in ("pair", "semantic"))
        mask = case["mask"]
        weights_C = 1 / (torch.tensor(OF_BOTH_SPLITS, dtype=torch.float64) + 0.001).log()
        value = decoupled_cross_entropy(pair[mask], semantic[mask], case["labels"][mask], weights_C, FREE)[part]
        gradients = torch.autograd.grad(value, (pair, semantic), allow_unused=True, materialize_grads=True)
        of_pair, of_semantic = (each.numpy() for each in gradients)
        assert value.item() == pytest.approx(golden[f"loss_3d_{name}"].item(), rel=1e-12)
        np.testing.assert_allclose(of_pair, golden[f"loss_3d_{name}_gpair"], rtol=1e-9, atol=1e-15)
        probe = golden[f"loss_3d_{name}_gsem_probe"]
        np.testing.assert_allclose(inputs.probe(of_semantic), probe, rtol=1e-9, atol=1e-14)
        assert not of_pair[~mask.numpy()].any()
        assert not of_semantic[~mask.numpy()].any()

    @pytest.mark.parametrize("everywhere", [FREE, 4])
    def test_a_part_without_voxels_is_zero_with_zero_gradient(self, everywhere):
        """Upstream semantics without an occupied voxel are not a number."""
        pair_V2, classes_VK = torch.randn(5, 2).requires_grad_(), torch.randn(5, C - 1).requires_grad_()
        for voxels in (5, 0):
            labels_V = torch.full((voxels,), everywhere)
            parts = decoupled_cross_entropy(pair_V2[:voxels], classes_VK[:voxels], labels_V, torch.ones(C), FREE)
            of_pair, of_classes = torch.autograd.grad(sum(parts), (pair_V2, classes_VK))
            assert (parts[0] > 0) == of_pair.any() == (voxels > 0)
            assert (parts[1] > 0) == of_classes.any() == (voxels > 0 and everywhere != FREE)

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 999), free=st.integers(0, 4))
    def test_the_parts_make_up_the_cross_entropy_wherever_free_is(self, seed, free):
        random = torch.Generator().manual_seed(seed)
        logits_VC = torch.randn(9, 5, dtype=torch.float64, generator=random)
        labels_V = torch.randint(0, 5, (9,), generator=random)
        others = [each for each in range(5) if each != free]
        occupied = logits_VC[:, others]
        pair_V2 = torch.stack([occupied.logsumexp(-1), logits_VC[:, free]], -1)
        geometric, semantic = decoupled_cross_entropy(pair_V2, occupied, labels_V, torch.ones(5), free)
        total = 9 * geometric + (labels_V != free).sum() * semantic
        torch.testing.assert_close(total, F.cross_entropy(logits_VC, labels_V, reduction="sum"))

    def test_of_a_network_of_all_classes(self, logits):
        frame = taught_frame()
        mask, weights_C = frame.mask_camera, torch.from_numpy(OCC3D_CLASSES.weights("log"))
        log_probs_VC, labels_V = logits[mask].log_softmax(-1), frame.semantics[mask].long()
        free_V = log_probs_VC[:, FREE]
        occupied_V = torch.log1p(-free_V.exp())
        geometric = -torch.where(labels_V == FREE, free_V, occupied_V).mean()
        conditional_VC = log_probs_VC - occupied_V[:, None]
        semantic = cross_entropy(conditional_VC[labels_V != FREE], labels_V[labels_V != FREE], weights_C)
        for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, 2.0)):
            value = DecoupledCrossEntropy(*weights, **OF_LABELS)(lesson(frame, logits))
            torch.testing.assert_close(value, weights[0] * geometric + weights[1] * semantic)
