"""Precision, recall and specificity as losses: upstream's own numbers, known answers, and where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import FREE, B, C, X, Y, Z, lesson, listening, taught, taught_frame

from distill.classes import OCC3D_CLASSES
from distill.losses.pseudo import PseudoGeometricScal, PseudoSemanticScal
from distill.losses.supervised import GeometricScal, SemanticScal, geometric_scal, semantic_scal

EMPTY, IGNORED = 0, 255  # of MonoOcc


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """MonoOcc's numbers, and the module that makes its inputs."""
    return np.load(shared / "fixtures/signals/monoocc_losses.npz"), inputs


def of_case(upstream, batch=1, labels=None):
    """Logits, and the probabilities and labels of what is not ignored."""
    golden, inputs = upstream
    case = inputs.case_scal(int(golden["seed"]), batch)
    logits = torch.tensor(case["logits"], requires_grad=True)
    target = torch.tensor(case["target"])
    valid = target != IGNORED
    labels_V = target[valid] if labels is None else torch.full((int(valid.sum()),), labels)
    return logits, logits.softmax(1).movedim(1, -1)[valid], labels_V


class TestUpstream:
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("kind", ["sem", "geo"])
    def test_values_and_gradients(self, upstream, kind, batch):
        golden, inputs = upstream
        logits, probs_VC, labels_V = of_case(upstream, batch)
        value = semantic_scal(probs_VC, labels_V) if kind == "sem" else geometric_scal(probs_VC, labels_V, EMPTY)
        gradient = torch.autograd.grad(value, logits)[0].numpy()
        assert value.item() == pytest.approx(golden[f"{kind}_b{batch}"].item(), rel=1e-12)
        np.testing.assert_allclose(inputs.probe(gradient), golden[f"{kind}_b{batch}_probe"], rtol=1e-9, atol=1e-14)
        if batch == 1:
            np.testing.assert_allclose(gradient, golden[f"{kind}_grad"], rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize(("name", "everywhere"), [("sem_single", 3), ("sem_allfree", EMPTY)])
    def test_one_class_everywhere_has_no_specificity(self, upstream, name, everywhere):
        logits, probs_VC, labels_V = of_case(upstream, labels=everywhere)
        value = semantic_scal(probs_VC, labels_V)
        assert value.item() == pytest.approx(upstream[0][name].item(), rel=1e-12)
        if name == "sem_single":
            (gradient,) = torch.autograd.grad(value, logits)
            np.testing.assert_allclose(gradient.numpy(), upstream[0]["sem_single_grad"], rtol=1e-9, atol=1e-15)

    def test_nothing_occupied_is_zero_with_zero_gradient(self, upstream):
        """Upstream stops, or says nan."""
        logits, probs_VC, labels_V = of_case(upstream, labels=EMPTY)
        value = geometric_scal(probs_VC, labels_V, EMPTY)
        assert value == 0
        assert not torch.autograd.grad(value, logits)[0].any()


class TestValues:
    def test_semantic_by_hand(self):
        """Classes 0, 0, 1 said by 0.8, 0.6 and 0.1: of class 0 1.4 of the 1.5 that are said are right, 1.4 of 2 are
        found and 0.9 of 1 is kept out; of class 1 0.9 of 1.5, 0.9 of 1 and 1.4 of 2; class 2 is not there."""
        first_V = torch.tensor([0.8, 0.6, 0.1], dtype=torch.float64)
        probs_VC = torch.stack([first_V, 1 - first_V, 0 * first_V], dim=1)
        expected = -math.log(1.4 / 1.5 * 1.4 / 2 * 0.9) - math.log(0.9 / 1.5 * 0.9 * 1.4 / 2)
        assert semantic_scal(probs_VC, torch.tensor([0, 0, 1])).item() == pytest.approx(expected / 2, rel=1e-12)

    def test_geometric_by_hand(self):
        """Occupied, occupied, free, said to be free by 0.2, 0.5 and 0.9: 1.3 of 1.4, 1.3 of 2 and 0.9 of 1."""
        free_V = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
        probs_VC = torch.stack([0.25 * (1 - free_V), free_V, 0.75 * (1 - free_V)], dim=1)
        expected = -math.log(1.3 / 1.4) - math.log(1.3 / 2) - math.log(0.9)
        for labels in ([0, 2, 1], [2, 2, 1]):
            assert geometric_scal(probs_VC, torch.tensor(labels), 1).item() == pytest.approx(expected, rel=1e-12)

    def test_right_is_zero(self):
        labels_V = torch.tensor([0, 1, 2, 2])
        probs_VC = F.one_hot(labels_V, 4).double()
        assert semantic_scal(probs_VC, labels_V) == geometric_scal(probs_VC, labels_V, 2) == 0

    @pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-3), (torch.float64, 1e-12)])  # e^-100 is subnormal
    def test_what_is_never_found_costs_a_hundred_each_and_has_no_gradient(self, dtype, near):
        """Two classes that are exchanged: nothing said is right, nothing is found, nothing is kept out."""
        labels_V = torch.tensor([0, 1])
        probs_VC = F.one_hot(1 - labels_V).to(dtype).requires_grad_()
        value = semantic_scal(probs_VC, labels_V)
        assert value.item() == pytest.approx(300, rel=near)
        assert not torch.autograd.grad(value, probs_VC)[0].any()

    def test_a_class_that_nobody_says_has_no_precision(self):
        probs_VC = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        expected = (-math.log(1 / 2) + 100) + 100  # of class 0 precision and specificity, of class 1 recall
        assert semantic_scal(probs_VC, torch.tensor([0, 1])).item() == pytest.approx(expected / 2, rel=1e-12)

    @pytest.mark.parametrize("loss", [semantic_scal, lambda *given: geometric_scal(*given, 1)])
    def test_no_voxel_is_zero_with_zero_gradient(self, loss):
        logits_VC = torch.zeros(0, 3, requires_grad=True)
        value = loss(logits_VC.softmax(-1), torch.zeros(0, dtype=torch.long))
        value.backward()
        assert value == 0
        assert logits_VC.grad.shape == (0, 3)

    def test_occupied_everywhere_has_no_specificity(self):
        probs_VC = torch.tensor([[0.7, 0.3], [0.5, 0.5]], dtype=torch.float64)
        value = geometric_scal(probs_VC, torch.tensor([0, 0]), 1)
        assert value.item() == pytest.approx(-math.log(1.2 / 2), rel=1e-12)  # precision is 1

    def test_gradient(self):
        random = torch.Generator().manual_seed(0)
        logits_VC = torch.randn(12, 4, dtype=torch.float64, generator=random).requires_grad_()
        labels_V = torch.randint(0, 3, (12,), generator=random)
        assert torch.autograd.gradcheck(lambda x: semantic_scal(x.softmax(-1), labels_V), logits_VC)
        assert torch.autograd.gradcheck(lambda x: geometric_scal(x.softmax(-1), labels_V, 1), logits_VC)


class TestTerms:
    @pytest.fixture
    def frame(self):
        frame = taught_frame()
        frame.labelled[1] = False
        return frame

    @pytest.fixture
    def logits(self):
        random = torch.Generator().manual_seed(1)
        return torch.randn(B, X, Y, Z, C, generator=random, dtype=torch.float64).requires_grad_()

    def test_of_labels(self, frame, logits):
        mask = frame.mask_camera[0]
        probs_VC, labels_V = logits[0][mask].softmax(-1), frame.semantics[0][mask].long()
        asked = lesson(frame, logits)
        semantic, geometric = (kind(1.0, "camera", OCC3D_CLASSES)(asked) for kind in (SemanticScal, GeometricScal))
        torch.testing.assert_close(semantic, semantic_scal(probs_VC, labels_V))
        torch.testing.assert_close(geometric, geometric_scal(probs_VC, labels_V, FREE))

    def test_of_a_teachers_classes(self, frame, logits):
        """On the frame without labels, where the teacher is sure."""
        teacher_VC = taught(frame).voxels(torch.arange(B * X * Y * Z)).view(B, -1, C)[1].softmax(-1)
        probs_V, called_V = teacher_VC.max(-1)
        sure_V = probs_V >= 0.2
        assert 0 < sure_V.sum() < len(sure_V)
        student_VC, labels_V = logits[1].flatten(0, -2)[sure_V].softmax(-1), called_V[sure_V]
        pseudo = {"threshold": 0.2, "frames": "unlabelled", **listening()}
        asked = lesson(frame, logits)
        semantic, geometric = (kind(**pseudo)(asked) for kind in (PseudoSemanticScal, PseudoGeometricScal))
        torch.testing.assert_close(semantic, semantic_scal(student_VC, labels_V))
        torch.testing.assert_close(geometric, geometric_scal(student_VC, labels_V, FREE))
