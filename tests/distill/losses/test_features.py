"""Distilling BEV features: upstream's numbers, which cells count, maps of other strides, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import FREE, listening

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, Mirror, Told
from distill.grids import VoxelGrid
from distill.losses.features import (
    DISTANCES,
    FeatureDistillation,
    ImageFeatureCosine,
    VoxelFeatureDistillation,
    cells_with,
    channel_kl,
    cosine_distance,
    published_kl,
)
from distill.losses.objective import Lesson, Objective
from distill.networks.prediction import FeatureMap, Occupancy
from distill.signals.features import FeatureCodes, Features, VoxelFeatures
from distill.signals.seen import Seen, SeenVoxels
from distill.signals.voxels import VoxelCodes, Voxels
from distill.teaching.taught import Taught

B, X, Y, Z, C = 2, 8, 8, 2, 18
GRID = VoxelGrid("tiny", "ego", (-4.0, -4.0, -1.0), 1.0, (X, Y, Z))
NAMES = OCC3D_CLASSES.names
CAR = NAMES.index("car")
STUDENT, TEACHER, STRIDE = 3, 5, 2  # channels, and the stride of the teacher's map
KINDS = [*DISTANCES, "published"]


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """The module that makes the inputs of goldens, and the folder of the goldens."""
    return inputs, shared / "fixtures/signals"


def make_term(kind="mfd", share=0.5, student=STUDENT, teacher=TEACHER, **region):
    """In float64, its adapter always the same."""
    published, kind = kind == "published", "kl" if kind == "published" else kind
    torch.manual_seed(0)
    return FeatureDistillation(kind, published, share, student, teacher, **listening(**region)).double()


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_frame(**changed):
    """Two labelled frames of random labels, half of whose voxels are seen; what the teacher finds, and its features."""
    generator = torch.Generator().manual_seed(3)
    occupied, seen, found = (torch.rand(B, X, Y, Z, generator=generator) < share for share in (0.2, 0.5, 0.3))
    table = torch.linspace(0, -4, 256).repeat(B, 1)
    codes = torch.full((B, X, Y, Z, C), 255, dtype=torch.uint8)
    codes.scatter_(-1, torch.where(found, CAR, FREE).unsqueeze(-1), 0)
    features = torch.randint(0, 256, (B, X // STRIDE, Y // STRIDE, TEACHER), dtype=torch.uint8, generator=generator)
    signals = {
        "features": FeatureCodes(codes=features, scales=torch.tensor([-1.0, 0.01]).repeat(B, TEACHER, 1)),
        "voxels": VoxelCodes(codes=codes, table=table),
        "seen": SeenVoxels(seen=seen.flip(1)),
    }
    told = Told(
        taught=torch.ones(B, dtype=torch.bool), covered=torch.ones(B, X, Y, Z, dtype=torch.bool), signals=signals
    )
    semantics = torch.where(occupied, CAR, FREE).byte()
    labelled = torch.ones(B, dtype=torch.bool)
    frame = Frame(semantics=semantics, mask_camera=seen, labelled=labelled, teachers={"stored": told})
    return replace(frame, **changed)


def make_lesson(frame, student, stride=1, asked=("features", "voxels", "seen")):
    """The frame, and a student's map of this stride."""
    kinds = {
        "features": Features(GRID, NAMES, TEACHER, STRIDE),
        "voxels": Voxels(GRID, NAMES),
        "seen": Seen(GRID, NAMES),
    }
    answers = {name: kinds[name] for name in asked}
    teachers = {
        name: Taught(name, 1.0, told, answers, frame, GRID, FREE) for name, told in (frame.teachers or {}).items()
    }
    features = {"bev": FeatureMap(student, "grid", stride)}
    return Lesson(frame, Occupancy(torch.zeros(B, X, Y, Z, C), features), teachers, 0)


def value_and_gradients(term, lesson):
    """Of the student's map, and of the adapter."""
    student = lesson.prediction.features["bev"].values
    value = Objective({"it": term})(lesson)["it"][0]
    student_gradient, *of_term = torch.autograd.grad(value, [student, *term.parameters()])
    return value.detach(), student_gradient, of_term


def student_map(stride=1, channels=STUDENT):
    return random(B, channels, X // stride, Y // stride, seed=1).requires_grad_()


def touched(gradient_BCXY):
    return (gradient_BCXY != 0).any(1)


class TestUpstream:
    @pytest.mark.parametrize(("share", "name"), [(1.0, "mfd_foreground"), (0.5, "mfd_split")])
    def test_masked_feature_distillation(self, upstream, share, name):
        """Foreground alone, and half of it and half of all the rest; a voxel per column, all of them seen."""
        inputs, folder = upstream
        golden = np.load(folder / "kd_forms.npz")
        case = {key: torch.tensor(value) for key, value in inputs.case_bev_features(int(golden["seed"])).items()}
        term = make_term(share=share, student=8, teacher=12)
        term.load_state_dict({key: case[key] for key in ("adapter.weight", "adapter.bias")})
        semantics = torch.where(case["mask"], CAR, FREE)[..., None]
        frame = Frame(
            semantics=semantics, mask_camera=torch.ones_like(semantics) > 0, labelled=torch.ones(2, dtype=torch.bool)
        )
        teacher = SimpleNamespace(
            name="golden",
            weight=1.0,
            taught_B=frame.labelled,
            covered=lambda index_V: torch.ones_like(index_V, dtype=torch.bool),
            features=lambda: FeatureMap(case["teacher"], "grid", 1),
        )
        student = case["student"].requires_grad_()
        prediction = Occupancy(torch.zeros(*semantics.shape, C), {"bev": FeatureMap(student, "grid", 1)})
        value = term(Lesson(frame, prediction, {"golden": teacher}, 0))
        gradients = torch.autograd.grad(value, [student, term.adapter.weight, term.adapter.bias])
        assert value.item() == pytest.approx(golden[name].item(), rel=1e-12)
        probes = [inputs.probe(gradient.numpy()) for gradient in gradients]
        np.testing.assert_allclose(probes, golden[f"{name}_grads"], rtol=1e-9)

    @pytest.mark.parametrize(
        ("distance", "name"), [(channel_kl, "kl"), (cosine_distance, "cos"), (published_kl, "upstream")]
    )
    def test_features_of_voxels(self, upstream, distance, name):
        """MonoOcc's, on occupied voxels with a label, of 5 dimensions instead of 4."""
        inputs, folder = upstream
        golden = np.load(folder / "monoocc_losses.npz")
        case = {key: torch.tensor(value) for key, value in inputs.case_voxel_feature(int(golden["seed"])).items()}
        student, teacher = case["student"].requires_grad_(), case["teacher"]
        cells = (case["target"] != 0) & (case["target"] != inputs.IGNORE)
        assert cells.sum() == golden["voxfeat_count"]
        value = distance(student, teacher)[cells].mean()
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == pytest.approx(golden[f"voxfeat_{name}"].item(), rel=1e-12)
        np.testing.assert_allclose(gradient.numpy(), golden[f"voxfeat_{name}_grad"], rtol=1e-9, atol=1e-15)
        if name == "upstream":
            assert distance(teacher, teacher).abs().max() == golden["voxfeat_upstream_at_teacher"]
            beyond = distance(teacher + 100, teacher)[cells].mean().item()
            assert beyond == pytest.approx(golden["voxfeat_upstream_shift100"].item(), rel=1e-12)


class TestDistances:
    @pytest.mark.parametrize("kind", DISTANCES)
    def test_zero_with_zero_gradient_where_both_say_the_same(self, kind):
        student = random(4, 5).requires_grad_()
        value = DISTANCES[kind](student, student.detach()).sum()
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == pytest.approx(0, abs=1e-14)
        assert gradient.abs().max() < 1e-14

    @pytest.mark.parametrize("kind", DISTANCES)
    def test_it_is_least_there_and_falls_nowhere_without_end(self, kind):
        teacher, away = random(4, 5), random(4, 5, seed=1)
        along = torch.stack([DISTANCES[kind](teacher + much * away, teacher).mean() for much in (0, 0.1, 1, 100)])
        assert (along.diff() > 0).all()
        assert published_kl(teacher + 100, teacher).mean() < -100

    def test_features_of_nothing_are_at_a_right_angle_to_all(self):
        """A rectified map has cells of zeros; no NaN, and no pull where the teacher has one."""
        student = torch.stack([random(5), torch.zeros(5, dtype=torch.float64)]).requires_grad_()
        teacher = torch.stack([torch.zeros(5, dtype=torch.float64), random(5, seed=1)])
        value = cosine_distance(student, teacher)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert value.tolist() == [1, 1]
        assert not gradient[0].any()
        assert gradient.isfinite().all()

    def test_length_is_nothing_to_a_cosine_and_an_offset_nothing_to_a_divergence(self):
        student, teacher = random(4, 5), random(4, 5, seed=1)
        torch.testing.assert_close(cosine_distance(3 * student, teacher), cosine_distance(student, teacher))
        torch.testing.assert_close(channel_kl(student + 3, teacher), channel_kl(student, teacher))


class TestVoxels:
    """Of maps whose cells are blocks of voxels."""

    def lesson(self, student, stride=STRIDE):
        frame = make_frame()
        generator = torch.Generator().manual_seed(4)
        sides = X // STRIDE, Y // STRIDE, Z // STRIDE
        codes = torch.randint(0, 256, (B, *sides, TEACHER), dtype=torch.uint8, generator=generator)
        record = FeatureCodes(codes=codes, scales=torch.tensor([-1.0, 0.01]).repeat(B, TEACHER, 1))
        told = replace(frame.teachers["stored"], signals={"voxel_features": record})
        answers = {"voxel_features": VoxelFeatures(GRID, NAMES, TEACHER, STRIDE)}
        teachers = {"stored": Taught("stored", 1.0, told, answers, frame, GRID, FREE)}
        features = {"voxels": FeatureMap(student, "grid", stride)}
        return Lesson(frame, Occupancy(torch.zeros(B, X, Y, Z, C), features), teachers, 0), codes

    def term(self, share=1.0):
        torch.manual_seed(0)
        return VoxelFeatureDistillation("kl", False, share, STUDENT, TEACHER, **listening()).double()

    def test_it_is_the_mean_divergence_of_blocks_in_which_anything_is_seen_to_stand(self):
        student, term = random(B, STUDENT, 4, 4, 1).requires_grad_(), self.term()
        lesson, codes = self.lesson(student)
        stands = lesson.frame.mask_camera & (lesson.frame.semantics != FREE)
        blocks = stands.unflatten(1, (4, 2)).unflatten(3, (4, 2)).any(-1, keepdim=True).any(4).any(2)
        teacher = (-1 + 0.01 * codes.double()).log_softmax(-1)
        found = torch.einsum("oi,bixyz->bxyzo", term.adapter.weight[..., 0, 0, 0], student) + term.adapter.bias
        divergence = (teacher.exp() * (teacher - found.log_softmax(-1))).sum(-1)
        value = Objective({"it": term})(lesson)["it"][0]
        assert value.item() == pytest.approx(divergence[blocks].mean().item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.equal(touched(gradient), blocks) and 0 < blocks.sum() < blocks.numel()

    @pytest.mark.parametrize("stride", [1, 2])
    def test_maps_of_other_strides_are_compared(self, stride):
        student = random(B, STUDENT, X // stride, Y // stride, Z // stride).requires_grad_()
        value = Objective({"it": self.term(0.5)})(self.lesson(student, stride)[0])["it"][0]
        assert value > 0 and torch.autograd.grad(value, student)[0].any()

    def test_a_map_of_columns_is_none_of_voxels(self):
        lesson, _ = self.lesson(random(B, STUDENT, 4, 4, 1))
        bev = {"bev": lesson.prediction.features["voxels"]}
        lesson = Lesson(lesson.frame, lesson.prediction._replace(features=bev), lesson.teachers, 0)
        with pytest.raises(InputError, match="the student's network has no map of the features"):
            Objective({"it": self.term()})(lesson)


class TestCells:
    def test_a_cell_is_that_of_its_columns(self):
        voxel = torch.zeros(B, X, Y, Z, dtype=torch.bool)
        voxel[0, 5, 3, 1] = voxel[1, 0, 0, 0] = voxel[1, 1, 1, 1] = True
        found = cells_with(voxel.flatten().nonzero().squeeze(1), voxel.shape, STRIDE)
        assert found.nonzero().tolist() == [[0, 2, 1], [1, 0, 0]]

    @pytest.mark.parametrize("share", [1.0, 0.0])
    def test_labels_say_what_is_foreground_where_there_are_some(self, share):
        """Of voxels that are seen; without looking at what the teacher finds, which need not be stored."""
        frame = make_frame()
        occupied = cells(frame.mask_camera & (frame.semantics != FREE))
        expected = occupied if share else cells(frame.mask_camera) & ~occupied
        lesson = make_lesson(frame, student_map(STRIDE), STRIDE, asked=("features",))
        _, gradient, _ = value_and_gradients(make_term(share=share), lesson)
        assert 0 < expected.sum() < expected.numel()
        assert torch.equal(touched(gradient), expected)

    @pytest.mark.parametrize("share", [1.0, 0.0])
    def test_the_teacher_says_it_elsewhere(self, share):
        frame = make_frame(labelled=torch.tensor([True, False]))
        signals = frame.teachers["stored"].signals
        seen = torch.stack([frame.mask_camera[0], signals["seen"].seen[1]])
        found = signals["voxels"].codes[1].argmin(-1) != FREE
        occupied = cells(seen & torch.stack([frame.semantics[0] != FREE, found]))
        expected = occupied if share else cells(seen) & ~occupied
        lesson = make_lesson(frame, student_map(STRIDE), STRIDE)
        _, gradient, _ = value_and_gradients(make_term(share=share, unlabelled="seen"), lesson)
        assert 0 < expected[1].sum() < expected[1].numel()
        assert torch.equal(touched(gradient), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_the_teacher_does_not_teach_or_has_not_modelled_counts_for_nothing(self, kind):
        frame = make_frame()
        told = frame.teachers["stored"]
        told.taught[0] = False
        told.covered[1, :4] = False
        _, gradient, _ = value_and_gradients(make_term(kind), make_lesson(frame, student_map(STRIDE), STRIDE))
        assert not touched(gradient)[0].any() and not touched(gradient)[1, :2].any()
        assert touched(gradient)[1, 2:].any()

    @pytest.mark.parametrize("kind", KINDS)
    def test_without_a_cell_it_is_zero_with_zero_gradient(self, kind):
        """Which the adapter gets, too: a process of several that has none must not wait for the others."""
        frame = make_frame(mask_camera=torch.zeros(B, X, Y, Z, dtype=torch.bool))
        value, *gradients = value_and_gradients(make_term(kind), make_lesson(frame, student_map(STRIDE), STRIDE))
        assert value.item() == 0
        assert not any(gradient.any() for gradient in (gradients[0], *gradients[1]))

    def test_a_part_without_cells_adds_nothing_and_the_other_keeps_its_share(self):
        frame = make_frame(semantics=torch.full((B, X, Y, Z), FREE, dtype=torch.uint8))
        lesson = make_lesson(frame, student_map(STRIDE), STRIDE)
        half, whole, none = (value_and_gradients(make_term(share=share), lesson)[0] for share in (0.5, 0.0, 1.0))
        torch.testing.assert_close(half, whole / 2)
        assert none == 0


def cells(voxels_BXYZ):
    return voxels_BXYZ.view(B, X // STRIDE, STRIDE, Y // STRIDE, STRIDE, Z).any(5).any(4).any(2)


class TestMaps:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("stride", [1, 2, 4])
    @pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
    def test_a_mirrored_world_has_the_same_value(self, kind, stride, flips):
        """Whatever the stride of the student, finer, the same and coarser."""
        student, frame = student_map(stride), make_frame()
        axes = [axis + 2 for axis, flip in enumerate(flips) if flip]
        mirrored = make_lesson(frame.mirrored(Mirror(*flips)), student.flip(axes), stride)
        before = make_term(kind)(make_lesson(frame, student, stride))
        torch.testing.assert_close(make_term(kind)(mirrored), before)
        assert (make_term(kind)(make_lesson(frame, student.flip(axes), stride)) - before).abs() > 1e-6

    def test_cells_of_a_finer_student_are_averaged(self):
        fine = student_map(1)
        coarse = fine.detach().view(B, STUDENT, X // 2, 2, Y // 2, 2).mean((3, 5)).requires_grad_()
        values = [make_term()(make_lesson(make_frame(), *each)) for each in ((fine, 1), (coarse, 2))]
        torch.testing.assert_close(*values)

    def test_a_coarser_student_is_interpolated(self):
        """A slope stays a slope between the centres of cells: -1, 1 at 2 x 2 cells of 4 x 4 columns."""
        term = make_term(student=1, teacher=1)
        torch.nn.init.ones_(term.adapter.weight)
        torch.nn.init.zeros_(term.adapter.bias)
        slope = torch.tensor([-1.0, 1]).view(1, 1, 2, 1).expand(B, 1, 2, 2).double()
        taught = FeatureMap(torch.zeros(B, 1, X // 2, Y // 2), "grid", 2)
        found = term.adapted(make_lesson(make_frame(), slope, 4), taught)
        assert found[0, 0].tolist() == [[value] * 4 for value in (-1, -0.5, 0.5, 1)]

    def test_half_precision_of_the_network_is_widened(self):
        term = make_term().float()
        low = random(B, STUDENT, X, Y, seed=1).bfloat16()
        value = term(make_lesson(make_frame(), low))
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, term(make_lesson(make_frame(), low.float())))


class TestMisfits:
    @pytest.mark.parametrize(
        ("term", "student", "stride", "told"),
        [
            (
                {"student": 4},
                (B, 3, X, Y),
                1,
                r"student's map .* 3 channels, the term expects 4: set student_channels=3 \(kd\.terms",
            ),
            (
                {"teacher": 4},
                (B, 3, X, Y),
                1,
                r"teacher's map .* 5 channels, the term expects 4: set teacher_channels=5",
            ),
            ({}, (B, 3, X, Y), 2, r"student's map of features has 8 x 8 cells of stride 2, the grid 8 x 8:"),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, term, student, stride, told):
        with pytest.raises(InputError, match=told) as refused:
            make_term(**term)(make_lesson(make_frame(), random(*student), stride))
        assert "\n" not in str(refused.value)

    def test_a_network_without_a_map(self):
        lesson = make_lesson(make_frame(), student_map())
        lesson.prediction = Occupancy(lesson.prediction.voxel_logits_BXYZC)
        with pytest.raises(InputError, match="student's network has no map of the features that a term is about"):
            make_term()(lesson)

    def test_two_teachers_need_two_terms(self):
        frame = make_frame()
        frame = replace(frame, teachers={"one": frame.teachers["stored"], "two": frame.teachers["stored"]})
        lesson = make_lesson(frame, student_map())
        with pytest.raises(InputError, match="listens to one, two, whose features have nothing in common"):
            make_term()(lesson)
        assert make_term(teachers=["two"])(lesson) > 0


def test_what_it_asks():
    """Of frames with labels nothing but features."""
    objective = Objective({"it": make_term(unlabelled="seen")})
    assert objective.asked("stored") == {"features"}
    assert objective.asked_unlabelled("stored") == {"voxels", "seen"}
    assert objective.state_dict().keys() == {"terms.it.adapter.weight", "terms.it.adapter.bias"}


class TestImages:
    def lesson(self, student, teacher, taught=(True, True)):
        """Two frames of one image each."""
        prediction = Occupancy(torch.zeros(2, 1, 1, 1, C), {"image": FeatureMap(student, "image", 16)})
        answer = FeatureMap(teacher, "image", 4)
        said = SimpleNamespace(name="t", weight=1.0, taught_B=torch.tensor(taught), ask=lambda question: lambda: answer)
        return Lesson(Frame(), prediction, {"t": said}, 0)

    def test_against_upstream(self, upstream):
        inputs, folder = upstream
        golden = np.load(folder / "monoocc_losses.npz")
        case = {key: torch.tensor(value) for key, value in inputs.case_image_feature(int(golden["seed"])).items()}
        term = ImageFeatureCosine(1.0, None, 128, 256, 512).double()
        names = [name for name, _ in term.named_parameters()]
        term.load_state_dict({name: case[name.replace("projection.", "proj.")] for name in names})
        student = case["student"].requires_grad_()
        value = term(self.lesson(student[:, None], case["teacher"][:, None]))
        gradient, *of_term = torch.autograd.grad(value, [student, *term.parameters()])
        assert value.item() == pytest.approx(golden["imgfeat"].item(), rel=1e-12)
        np.testing.assert_allclose(inputs.probe(gradient.numpy()), golden["imgfeat_grad_probe"], rtol=1e-9)
        assert names == [f"projection.{layer}" for layer in ("0.weight", "0.bias", "2.weight", "2.bias")]
        probes = [inputs.probe(each.numpy()) for each in of_term]
        np.testing.assert_allclose(probes, golden["imgfeat_param_probes"], rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("taught", [(True, False), (False, False)])
    def test_frames_without_a_teacher_count_for_nothing(self, taught):
        term = ImageFeatureCosine(1.0, None, 3, 4, 5).double()
        student, teacher = random(2, 1, 3, 2, 4).requires_grad_(), random(2, 1, 5, 6, 12)
        value = term(self.lesson(student, teacher, taught))
        gradient, *of_term = torch.autograd.grad(value, [student, *term.parameters()])
        assert not gradient[~torch.tensor(taught)].any()
        if any(taught):
            torch.testing.assert_close(value, term(self.lesson(student[:1], teacher[:1], taught[:1])))
        else:
            assert value.item() == 0
            assert not any(each.any() for each in of_term)

    def test_a_misfit_is_one_line(self):
        term = ImageFeatureCosine(1.0, None, 3, 4, 5).double()
        with pytest.raises(InputError, match=r"teacher's map of features has 6 channels, the term expects 5"):
            term(self.lesson(random(2, 1, 3, 2, 4), random(2, 1, 6, 2, 4)))
        assert term.needs.answers == {"image_features"}
