"""Points against labelled voxels: upstream's numbers and gradients, known answers, what has no label, and ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import opus
import pytest
import torch
from hydra import compose, initialize_config_module
from made import FREE, GRID, taught_frame

from distill import ranks
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame
from distill.grids import OCC3D
from distill.losses.objective import Lesson
from distill.losses.point_sets import PointClasses, PointPlaces, nearest, sigmoid_focal
from distill.networks.prediction import Occupancy
from distill.point_sets import PointSet


def terms(grid=GRID, class_weights=None):
    """Both terms as they are configured."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", ["student=opus_t", "objective=opus", "kd=none"]).objective.terms
    places, classes = config.point_places, config.point_classes
    return [
        PointPlaces(places.weight, places.rare, grid, OCC3D_CLASSES),
        PointClasses(classes.weight, class_weights or classes.class_weights, grid, OCC3D_CLASSES),
    ]


def told(frame, *sets):
    return Lesson(frame, Occupancy(torch.zeros(1), points=tuple(PointSet(*each) for each in sets)), {}, 0)


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "fixtures/opus"
    numbers = np.load(folder / "ref_loss.npz")
    return numbers, [
        torch.from_numpy(x) if isinstance(x, np.ndarray) else [torch.from_numpy(y) for y in x]
        for x in opus.filler(folder).loss_case(0)
    ]


def test_upstreams_numbers_and_gradients(golden):
    numbers, (init, logits, points, semantics, mask) = golden
    free = [each.requires_grad_() for each in (init, *points, *logits)]
    size, lower = torch.tensor([80, 80, 6.4]), torch.tensor(OCC3D.lower)
    metres = [each * size + lower for each in (init, *points)]
    frame = Frame(semantics=semantics, mask_camera=mask, labelled=torch.tensor([True, True]))
    places, classes = terms(OCC3D)
    names = ["init_loss_pts", "d0.loss_pts", "d1.loss_pts", "loss_pts"]
    found = [places.weight * places(told(frame, (each, None))) for each in metres]
    np.testing.assert_allclose([float(each) for each in found], [numbers[f"loss.{name}"] for name in names], rtol=1e-6)
    names = ["d0.loss_cls", "d1.loss_cls", "loss_cls"]
    found = [classes.weight * classes(told(frame, each)) for each in zip(metres[1:], logits, strict=True)]
    np.testing.assert_allclose([float(each) for each in found], [numbers[f"loss.{name}"] for name in names], rtol=1e-6)
    lesson = told(frame, (metres[0], None), *zip(metres[1:], logits, strict=True))
    gradients = torch.autograd.grad(sum(term.weight * term(lesson) for term in (places, classes)), free)
    for name, gradient in zip(
        ["init", *(f"points{n}" for n in range(3)), *(f"logits{n}" for n in range(3))], gradients, strict=True
    ):
        expected = numbers[f"grad.{name}"]
        strides = [-(-have // want) for have, want in zip(gradient.shape, expected.shape, strict=True)]
        some = gradient[tuple(slice(None, None, stride) for stride in strides)]
        np.testing.assert_allclose(some.numpy(), expected, rtol=1e-4, atol=2e-5)  # single precision, both
        assert float(gradient.norm()) == pytest.approx(float(numbers[f"grad_norm.{name}"]), rel=1e-5)


def test_matches_and_weights_are_upstreams(golden):
    numbers, (_, _, points, semantics, mask) = golden
    frame = Frame(semantics=semantics, mask_camera=mask, labelled=torch.tensor([True, True]))
    metres = points[-1].detach() * torch.tensor([80, 80, 6.4]) + torch.tensor(OCC3D.lower)
    places, _ = terms(OCC3D)
    lesson = told(frame, (metres, None))
    places(lesson)
    matches, *_ = lesson.once("matched point sets", lambda: None)
    assert [len(match.nearest_T) for match in matches] == numbers["n_gt"].tolist()
    first = matches[0]
    assert np.array_equal(first.targets.labels_T[first.nearest_P].numpy(), numbers["last.label"])


def frame_of(labels, mask=None):
    """One frame of `GRID` whose voxels have labels, by their position."""
    semantics = torch.full((1, *GRID.shape), FREE, dtype=torch.uint8)
    for place, label in labels.items():
        semantics[0][place] = label
    mask = torch.ones_like(semantics, dtype=torch.bool) if mask is None else mask
    return Frame(semantics=semantics, mask_camera=mask, labelled=torch.tensor([True]))


def test_places_known_answers():
    frame = frame_of({(0, 0, 0): 4, (3, 0, 0): 11})
    centres = torch.tensor([[-1.75, -1.25, 2.75], [-0.25, -1.25, 2.75]])
    places, _ = terms()
    assert float(places(told(frame, (centres.view(1, 2, 1, 3), None)))) == 0
    moved = centres + torch.tensor([[0.1, 0, 0], [0, 0.5, 0]])
    # squared within 0.2 m, 0.1^2 / 0.4; linear behind it, 0.5 - 0.1, and visible voxels so far away count five times
    expected = (0.025 + 5 * 0.4) / 2 + (0.025 + 0.4) / 2
    assert float(places(told(frame, (moved.view(1, 2, 1, 3), None)))) == pytest.approx(expected, rel=1e-5)
    unseen = replace(frame, mask_camera=torch.zeros_like(frame.mask_camera))
    assert float(places(told(unseen, (moved.view(1, 2, 1, 3), None)))) == pytest.approx(0.425, rel=1e-5)
    rare = frame_of({(0, 0, 0): 4, (3, 0, 0): 2})
    expected = (0.025 + 10 * 0.4) / 2 + (0.025 + 0.4) / 2
    assert float(places(told(rare, (moved.view(1, 2, 1, 3), None)))) == pytest.approx(expected, rel=1e-5)


def test_scores_of_each_class_count_by_their_own_weight_and_by_distance():
    _, classes = terms(class_weights=[0.0] * 4 + [3.0] + [0.0] * 12)
    frame = frame_of({(0, 0, 0): 4})
    logits = torch.full((1, 1, 1, 17), 0.3)
    centre = torch.tensor([-1.75, -1.25])
    away = 1 + float(centre.norm()) / float(torch.tensor([2.0, 1.5]).norm())
    expected = 3 * away * sigmoid_focal(torch.tensor(0.3), torch.tensor(1.0))
    assert float(classes(told(frame, (torch.zeros(1, 1, 1, 3), logits)))) == pytest.approx(float(expected), rel=1e-5)


def test_what_has_no_label_and_what_is_empty_adds_nothing():
    frame = taught_frame()
    points, logits = torch.randn(2, 3, 2, 3, requires_grad=True), torch.randn(2, 3, 2, 17, requires_grad=True)
    half = replace(frame, labelled=torch.tensor([True, False]))
    alone = Frame(**{name: getattr(frame, name)[:1] for name in ("semantics", "mask_camera", "labelled")})
    empty = replace(frame, semantics=torch.full_like(frame.semantics, FREE))
    for term in terms():
        torch.testing.assert_close(term(told(half, (points, logits))), term(told(alone, (points[:1], logits[:1]))))
        for nothing in (empty, replace(frame, labelled=torch.tensor([False, False]))):
            value = term(told(nothing, (points, logits)))
            gradients = torch.autograd.grad(value, (points, logits), allow_unused=True)
            assert float(value) == 0 and not any(each.any() for each in gradients if each is not None)


def test_the_nearest_is_the_first_of_equals_however_it_is_split(monkeypatch):
    points, targets = torch.randint(0, 3, (50, 3)).float(), torch.randint(0, 3, (20, 3)).float()
    apart = (points[:, None] - targets).norm(dim=2)
    for at_once in (1 << 25, 60, 1):
        monkeypatch.setattr("distill.losses.point_sets._AT_ONCE", at_once)
        of_points, of_targets = nearest(points, targets)
        assert torch.equal(of_points, (apart == apart.amin(1, keepdim=True)).int().argmax(1))
        assert torch.equal(of_targets, (apart == apart.amin(0)).int().argmax(0))


@pytest.mark.parametrize("number", [0, 1], ids=["places", "classes"])
def test_ranks_divide_by_what_the_global_batch_has(number, monkeypatch):
    """Averaged over ranks, as their gradients are, the parts are what one rank says of the whole batch."""
    term, frame = terms()[number], taught_frame()
    frame.semantics[0, : 2 + 2 * number] = FREE  # other numbers of targets, and of frames that have some
    points, logits, counts = torch.randn(2, 3, 2, 3), torch.randn(2, 3, 2, 17), []

    def said_by(rank):
        mine = slice(rank, rank + 1)
        fields = {name: getattr(frame, name)[mine] for name in ("semantics", "mask_camera", "labelled")}
        return term(told(Frame(**fields), (points[mine], logits[mine])))

    whole = term(told(frame, (points, logits)))
    monkeypatch.setattr(ranks, "mean", lambda own: counts.append(own) or own)
    assert not torch.isclose((said_by(0) + said_by(1)) / 2, whole)
    monkeypatch.setattr(ranks, "mean", lambda own: sum(counts) / 2)
    torch.testing.assert_close((said_by(0) + said_by(1)) / 2, whole)


def test_a_network_without_points_is_told_so():
    for term in terms():
        with pytest.raises(InputError, match="about sets of points, which this network does not predict"):
            term(Lesson(taught_frame(), Occupancy(torch.zeros(1)), {}, 0))


def test_there_are_as_many_weights_as_classes():
    with pytest.raises(InputError, match="2 for 17 classes: give one for each"):
        PointClasses(1.0, [1.0, 2.0], GRID, OCC3D_CLASSES)
    assert PointPlaces(1.0, [0], GRID, OCC3D_CLASSES).rare == (0,)
