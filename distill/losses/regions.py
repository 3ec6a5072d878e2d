"""Where a term looks: the voxels that a mask policy calls valid, by their flat positions in (B, X, Y, Z).

Letters: B batch, X Y Z voxel axes, C classes, V valid voxels of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.frame import Frame
from distill.losses.objective import Lesson, ListeningTerm
from distill.teaching.taught import Taught
from kernels.pooled_labels import UNKNOWN, pooled_labels


class RegionTerm(ListeningTerm):
    """A term that listens to what teachers say of some voxels.

    Args:
        weight: of the term.
        teachers: names of those that it listens to; None: all.
        mask: which voxels of labelled frames, see `taught_voxels`.
        unlabelled: which voxels of frames without labels, see `taught_voxels`.
        classes: the class set of teachers and student.
    """

    def __init__(
        self, weight: float, teachers: Sequence[str] | None, mask: str, unlabelled: str, classes: ClassSet
    ) -> None:
        super().__init__(weight, teachers)
        self.mask, self.unlabelled, self.classes = mask, unlabelled, classes
        if mask == "occupied":  # the region asks what the teacher says of voxels
            self.needs = self.needs._replace(answers=self.needs.answers | {"voxels"})
        if unlabelled == "seen":
            self.needs = self.needs._replace(answers_unlabelled=self.needs.answers_unlabelled | {"seen"})
        self.needs = self.needs._replace(
            prior=unlabelled == "prior", hidden=mask in ("lidar", "all"), hidden_unlabelled=unlabelled == "all"
        )

    def region(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """Those voxels of a batch, rising (V,)."""
        return taught_voxels(lesson, teacher, self.mask, self.unlabelled, self.classes)


def labelled_voxels(lesson: Lesson, mask: str, classes: ClassSet) -> Tensor:
    """The voxels of labelled frames in the mask, rising (V,), see `labelled_mask`."""
    return lesson.once(
        ("labelled voxels", mask), lambda: labelled_mask(lesson.frame, mask, classes).flatten().nonzero().squeeze(1)
    )


def labelled_mask(frame: Frame, mask: str, classes: ClassSet) -> Tensor:
    """Which voxels are of labelled frames and in the mask, bool (B, X, Y, Z).

    Args:
        frame: the batch.
        mask: "camera" (`mask_camera`, the setting of Occ3D mIoU), "lidar" (`mask_lidar`), or "all": every voxel but
            those whose label says nothing; unobserved ones are labelled free.
        classes: of the labels.
    """
    return _policy(mask, frame, classes.ignored) & _per_frame(frame.labelled)


def coarse_labels(lesson: Lesson, mask: str, classes: ClassSet, scale: int) -> Tensor:
    """Labels pooled to blocks of `scale` ^ 3 voxels, unknown outside the mask, uint8 (B, X, Y, Z) of the blocks.

    They are pooled as the frames show them, mirrored with the world (docs/formulas.md 4.18).
    """

    def work_out() -> Tensor:
        known_BXYZ = labelled_mask(lesson.frame, mask, classes)
        return pooled_labels(lesson.frame.semantics.masked_fill(~known_BXYZ, UNKNOWN), scale, classes.free)

    return lesson.once(("coarse labels", mask, scale), work_out)


def found_classes(teacher: Taught, index_V: Tensor, shape_BXYZ: torch.Size) -> Tensor:
    """The classes that a teacher finds likeliest, unknown but in some voxels, uint8 (B, X, Y, Z).

    Args:
        teacher: answers "voxels".
        index_V: flat positions of these voxels in (B, X, Y, Z).
        shape_BXYZ: of the voxels.
    """
    found_K = torch.full((shape_BXYZ.numel(),), UNKNOWN, dtype=torch.uint8, device=index_V.device)
    found_K[index_V] = teacher.called(index_V).to(torch.uint8)
    return found_K.view(shape_BXYZ)


def taught_voxels(lesson: Lesson, teacher: Taught, mask: str, unlabelled: str, classes: ClassSet) -> Tensor:
    """The voxels in the mask of which the teacher says something, rising (V,).

    Args:
        lesson: the batch.
        teacher: frames that it does not teach, and voxels that it has not modelled, are left out.
        mask: of labelled frames, "camera" or "lidar": those of the mask; "occupied": those of "camera" that the label
            or the teacher's argmax calls occupied, of frames without labels, too; "all": every voxel but those whose
            label says nothing.
        unlabelled: of frames without labels, "seen": those that cameras see by what the teacher finds; "prior": those
            of `mask_camera`, which is what cameras see as a rule (docs/formulas.md 4.9); "all": every voxel.
        classes: of labels and teacher.
    """

    def work_out() -> Tensor:
        frame = lesson.frame
        policy, labelled_B111 = "camera" if mask == "occupied" else mask, _per_frame(frame.labelled)
        mask_BXYZ = _policy(policy, frame, classes.ignored) & labelled_B111
        mask_BXYZ |= (frame.mask_camera if unlabelled == "prior" else True) & ~labelled_B111
        mask_BXYZ &= _per_frame(teacher.taught_B)
        index_V = mask_BXYZ.flatten().nonzero().squeeze(1)
        index_V = index_V[teacher.covered(index_V)]
        if unlabelled == "seen":
            index_V = _without_unseen(index_V, frame, teacher)
        if mask != "occupied":
            return index_V
        occupied_V = frame.semantics.flatten()[index_V] != classes.free
        occupied_V |= teacher.called(index_V) != classes.free
        return index_V[occupied_V]

    return lesson.once(("taught voxels", teacher.name, mask, unlabelled), work_out)


def _without_unseen(index_V: Tensor, frame: Frame, teacher: Taught) -> Tensor:
    """Those of labelled frames, and those that cameras see by what the teacher finds."""
    labelled_V = frame.labelled[index_V // frame.semantics[0].numel()]
    # a teacher of labelled frames alone need not know
    return index_V if labelled_V.all() else index_V[labelled_V | teacher.seen(index_V)]


def rows(values: Tensor, index_V: Tensor, axes: int) -> Tensor:
    """Flatten all but the last `axes` axes and take rows, in float32 at least."""
    return wide(values.flatten(0, -1 - axes).index_select(0, index_V))


def wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def decoupled(logits_VC: Tensor, free: int) -> tuple[Tensor, Tensor]:
    """What logits say of whether voxels are occupied, and of what they are if so.

    Args:
        logits_VC: logits or log-probabilities.
        free: id of the free class.

    Returns:
        Logits of (occupied, free), (V, 2), and of the other classes in the order of their ids, (V, C - 1).
    """
    occupied_VK = torch.cat([logits_VC[:, :free], logits_VC[:, free + 1 :]], 1)
    return torch.stack([occupied_VK.logsumexp(-1), logits_VC[:, free]], -1), occupied_VK


def _policy(mask: str, frame: Frame, ignored: int) -> Tensor:
    """Mask of the policy "camera", "lidar" or "all", bool (B, X, Y, Z); `ignored` is the label that says nothing."""
    return (
        {"camera": frame.mask_camera, "lidar": frame.mask_lidar}[mask]
        if mask != "all"
        else (frame.semantics != ignored)
    )


def _per_frame(flag_B: Tensor) -> Tensor:
    return flag_B[:, None, None, None]
