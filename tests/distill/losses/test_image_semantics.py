"""Classes in the images: upstream's numbers, what cameras see of labels, and what is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import FREE, B, C, X, Y, Z, taught_frame

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Mirror
from distill.grids import VoxelGrid
from distill.losses.image_semantics import UNKNOWN, ImageSemantics, pixel_cross_entropy, seen_labels
from distill.losses.objective import Lesson, Needs, Objective
from distill.networks.prediction import FeatureMap, Occupancy

# around the origin, so that it is its own mirror image
GRID = VoxelGrid("even", "ego", (-1.0, -0.75, 2.5), 0.5, (X, Y, Z))
CELLS = (6, 8)


class TestPixelCrossEntropy:
    @pytest.fixture
    def upstream(self, shared, inputs):
        """MonoOcc's numbers, the module that makes their inputs, logits of three levels, and labels."""
        golden = np.load(shared / "fixtures/signals/monoocc_losses.npz")
        case = {name: torch.tensor(value) for name, value in inputs.case_aux2d(int(golden["seed"])).items()}
        levels = [case[f"logits{level}"].requires_grad_() for level in range(3)]
        return golden, inputs, levels, case["target"].long()

    @pytest.mark.parametrize(("levels", "name"), [(3, "three"), (2, "two"), (1, "single")])
    def test_upstream(self, upstream, levels, name):
        golden, inputs, logits, labels = upstream
        value = pixel_cross_entropy([each.flatten(0, 1) for each in logits[:levels]], labels)
        assert value.item() == pytest.approx(golden[f"aux2d_{name}"].item(), rel=1e-12)
        if levels == 3:
            for level, gradient in enumerate(torch.autograd.grad(value, logits)):
                expected = golden[f"aux2d_grad{level}"]
                np.testing.assert_allclose(inputs.probe(gradient.numpy()), expected, rtol=1e-9, atol=1e-14)

    def test_nothing_known_is_zero_with_zero_gradient(self):
        logits = torch.randn(2, C, 3, 4).requires_grad_()
        value = pixel_cross_entropy([logits, logits[..., ::2]], torch.full((2, 6, 8), UNKNOWN))
        assert value == 0
        assert not torch.autograd.grad(value, logits)[0].any()


def emptied(frame):
    """With nothing in it, and everything seen."""
    return replace(
        frame,
        semantics=torch.full_like(frame.semantics, FREE),
        mask_camera=torch.ones_like(frame.mask_camera),
        mask_lidar=torch.ones_like(frame.mask_lidar),
    )


def seen(frame, known=None):
    return seen_labels(frame, frame.mask_camera if known is None else known, GRID, FREE, CELLS)


class TestSeenLabels:
    def test_a_wall_hides_what_is_behind_it(self):
        """The camera looks along x: through the first wall's hole the second one is seen."""
        frame = emptied(taught_frame())
        frame.semantics[:, 2] = 15
        everywhere = seen(frame)
        assert everywhere.shape == (B, 1, *CELLS)
        assert {*everywhere.unique().tolist()} == {15, UNKNOWN}
        frame.semantics[:, 1, 1] = 4
        labels = seen(frame)
        assert {*labels.unique().tolist()} == {4, 15, UNKNOWN}
        assert (everywhere[labels == 15] == 15).all()

    def test_by_walking_along_the_rays(self):
        """In small steps, each of which looks where it is."""
        frame = taught_frame()
        labels = seen(frame, torch.ones_like(frame.mask_camera))[0, 0]
        ego2voxel = torch.from_numpy(GRID.to_voxels())
        for row, column in np.ndindex(*CELLS):
            pixel = torch.tensor([column + 0.5, row + 0.5, 1.0], dtype=torch.float64)
            ray = torch.linalg.inv(frame.intrinsics[0, 0].double()) @ pixel
            points = torch.arange(0, 6, 1e-3, dtype=torch.float64)[:, None] * ray
            points = F.pad(points, (0, 1), value=1.0) @ (ego2voxel @ frame.cam2ego[0, 0].double()).T
            voxel = points[:, :3].floor().long()
            voxel = voxel[((voxel >= 0) & (voxel < torch.tensor([X, Y, Z]))).all(1)]
            met = frame.semantics[0][tuple(voxel.T)]
            met = met[met != FREE]
            assert labels[row, column] == (met[0] if len(met) else UNKNOWN)

    def test_what_is_not_known_hides_and_is_unknown(self):
        frame = emptied(taught_frame())
        frame.semantics[:, 2] = 15
        frame.mask_camera[:, 2] = False
        frame.semantics[:, 3] = 16
        assert not (seen(frame) == 16).any()
        assert not (seen(frame) == 15).any()

    @pytest.mark.parametrize("mirror", [Mirror(x=True), Mirror(y=True), Mirror(x=True, y=True)])
    def test_cameras_see_the_same_in_a_mirrored_world(self, mirror):
        frame = taught_frame()
        labels = seen(frame)
        assert (labels != UNKNOWN).sum() > 4
        assert torch.equal(seen(frame.mirrored(mirror)), labels)

    def test_a_camera_that_looks_elsewhere_sees_nothing(self):
        """Also where the first voxel of all is occupied, which is where lost rays are said to end."""
        frame = taught_frame()
        frame.semantics[:, 0, 0, 0] = 4
        away = frame.cam2ego.clone()
        away[..., :3, 2] *= -1
        away[..., :3, 0] *= -1
        assert (seen(replace(frame, cam2ego=away), torch.ones_like(frame.mask_camera)) == UNKNOWN).all()


class TestTerm:
    @pytest.fixture
    def features(self):
        return torch.randn(B, 1, 5, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()

    @staticmethod
    def term(channels=5):
        torch.manual_seed(0)
        return ImageSemantics(1.0, channels, 6, "camera", GRID, OCC3D_CLASSES)

    @staticmethod
    def lesson(frame, features):
        logits = torch.zeros(B, X, Y, Z, C)
        return Lesson(frame, Occupancy(logits, {"image": FeatureMap(features, "image", 2)}), {}, 0)

    def test_it_is_the_cross_entropy_of_what_is_seen(self, features):
        frame, term = taught_frame(), self.term()
        labels = seen(frame).flatten(0, 1)
        logits = term.decoder(features.flatten(0, 1))
        assert logits.shape == (B, C, *CELLS)
        expected = F.cross_entropy(logits, labels, ignore_index=UNKNOWN)
        torch.testing.assert_close(term(self.lesson(frame, features)), expected)

    def test_every_finer_cell_depends_on_the_image(self, features):
        """Which is not so of upstream's decoder."""
        logits = self.term().eval().decoder(features.flatten(0, 1))
        moved = self.term().eval().decoder(torch.randn_like(features).flatten(0, 1))
        assert (logits != moved).any(1).all()

    def test_features_and_decoder_are_trained_together(self, features):
        objective = Objective({"it": self.term()})
        objective(self.lesson(taught_frame(), features))["it"][1].backward()
        assert features.grad.any()
        assert all(parameter.grad.any() for parameter in objective.parameters())
        assert self.term().needs == Needs()

    def test_unlabelled_frames_and_empty_masks_count_for_nothing(self, features):
        frame, term = taught_frame(), self.term().eval()
        frame.labelled[1] = False
        (gradient,) = torch.autograd.grad(term(self.lesson(frame, features)), features)
        assert gradient[0].any()
        assert not gradient[1].any()
        frame.mask_camera[:] = False
        value = term(self.lesson(frame, features))
        assert value == 0
        assert not torch.autograd.grad(value, features)[0].any()

    def test_features_that_do_not_fit_are_named(self, features):
        with pytest.raises(InputError, match="wants a feature map image of 7 channels, the network has 5 channels"):
            self.term(7)(self.lesson(taught_frame(), features))
        with pytest.raises(InputError, match=r"the network has no such map \(none\)"):
            self.term()(Lesson(taught_frame(), Occupancy(torch.zeros(B, X, Y, Z, C)), {}, 0))
        with pytest.raises(InputError, match="channels must be given"):
            self.term(None)
