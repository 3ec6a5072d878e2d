"""The classes of a teacher as labels: the supervised losses on what it is sure of (docs/formulas.md 4.6 and 4.10).

Letters: V voxels of the whole batch, C classes, B bins of confidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.errors import InputError
from distill.losses.confidence import frame_confidence, frames_of
from distill.losses.objective import Lesson, Needs
from distill.losses.regions import RegionTerm, rows
from distill.losses.supervised import cross_entropy, geometric_scal, lovasz_softmax, semantic_scal
from distill.teaching.taught import Taught

_IN_A_LINE = 4  # classes of a table


class _PseudoTerm(RegionTerm):
    """What the terms of this module are configured by, beside the arguments of `RegionTerm`.

    Args:
        threshold: the least probability that the teacher gives its class where that counts as a label: one for all
            classes; or by class name, with `default` for the rest; or `precision` alone: each teacher's own, from which
            on it is right so often (`precise_thresholds`).
        frames: "unlabelled": those without labels alone; "all".

    Raises:
        InputError: a threshold is for no class, or there is none for the rest.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def __init__(self, threshold: float | Mapping[str, float], frames: str, **region: Any) -> None:
        super().__init__(**region)
        self.frames = frames
        self.precision = threshold.get("precision") if isinstance(threshold, Mapping) else None
        self.threshold = _by_class(threshold, self.classes) if self.precision is None else None
        self.measured: dict[str, tuple[float, ...]] = {}  # by teacher
        self.needs = self.needs._replace(unlabelled=frames == "unlabelled", calibration=self.precision is not None)

    def calibrate(self, teacher: str, voxels_CB: Tensor, right_CB: Tensor) -> str:
        """Take the thresholds of a teacher; returns a table of them."""
        assert self.precision is not None
        self.measured[teacher] = precise_thresholds(voxels_CB, right_CB, self.precision)
        return (
            f"classes of {teacher} are labels from these confidences on (kd.threshold.precision={self.precision}):\n"
            f"{_table(self.classes.names, self.measured[teacher])}"
        )

    def pseudo_labelled(self, lesson: Lesson, teacher: Taught) -> tuple[Tensor, Tensor, Tensor]:
        """The voxels (V,) of which the teacher is sure, the student's log-probabilities (V, C), the teacher's class."""
        threshold = self.measured[teacher.name] if self.threshold is None else self.threshold

        def work_out() -> tuple[Tensor, Tensor, Tensor]:
            index_V = self.region(lesson, teacher)
            if self.frames == "unlabelled":
                index_V = index_V[~lesson.frame.labelled[frames_of(index_V, lesson)]]
            labels_V, sure_V = sure_classes(teacher.voxels(index_V), threshold)
            sure_V &= labels_V != self.classes.ignored
            index_V, labels_V = index_V[sure_V], labels_V[sure_V]
            return index_V, rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1).log_softmax(-1), labels_V

        return lesson.once(
            ("pseudo-labels", teacher.name, self.mask, self.unlabelled, self.frames, threshold), work_out
        )


class PseudoCrossEntropy(_PseudoTerm):
    """Class-balanced cross-entropy against the classes of a teacher, mean over the voxels of which it is sure.

    Args:
        balance: how classes are weighed, see `ClassSet.weights`.
        confidence: what each frame counts, see `confidence.frame_confidence`.
    """

    def __init__(self, balance: str | float, confidence: str, **pseudo: Any) -> None:
        super().__init__(**pseudo)
        self.confidence = confidence
        self.register_buffer("weights_C", torch.as_tensor(self.classes.weights(balance)), persistent=False)

    weights_C: Tensor

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part; 0 where it is sure of nothing."""
        index_V, log_probs_VC, labels_V = self.pseudo_labelled(lesson, teacher)
        confidence_V = frame_confidence(self, self.confidence, lesson, teacher)[frames_of(index_V, lesson)]
        return cross_entropy(log_probs_VC, labels_V, self.weights_C, confidence_V)


class PseudoLovasz(_PseudoTerm):
    """Lovász-softmax against the classes of a teacher, mean over those of which it is sure anywhere."""

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part; 0 where it is sure of nothing."""
        _, log_probs_VC, labels_V = self.pseudo_labelled(lesson, teacher)
        return lovasz_softmax(log_probs_VC.exp(), labels_V)


class PseudoSemanticScal(_PseudoTerm):
    """Precision, recall and specificity of the classes of a teacher, mean over those of which it is sure anywhere."""

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part; 0 where it is sure of nothing."""
        _, log_probs_VC, labels_V = self.pseudo_labelled(lesson, teacher)
        return semantic_scal(log_probs_VC.exp(), labels_V)


class PseudoGeometricScal(_PseudoTerm):
    """Precision, recall and specificity of what a teacher is sure that it is occupied, whatever the class."""

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part; 0 where it is sure of nothing occupied."""
        _, log_probs_VC, labels_V = self.pseudo_labelled(lesson, teacher)
        return geometric_scal(log_probs_VC.exp(), labels_V, self.classes.free)


def sure_classes(teacher_VC: Tensor, threshold: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The likeliest classes, int64 (V,), and whether they are at least as likely as their thresholds, bool (V,).

    Args:
        teacher_VC: log-probabilities, of which rounding may have made sums other than 1: they are normalised.
        threshold: of each class.
    """
    probs_V, labels_V = teacher_VC.softmax(-1).max(-1)
    return labels_V, probs_V >= torch.tensor(threshold, dtype=probs_V.dtype, device=probs_V.device)[labels_V]


def precise_thresholds(voxels_CB: Tensor, right_CB: Tensor, precision: float) -> tuple[float, ...]:
    """Of each class the least confidence from which on a teacher is right in a share of what it calls so.

    Args:
        voxels_CB, right_CB: int64, by what it calls them and by confidence, see `distill.metrics.Calibration`.
        precision: the share.

    Returns:
        lower edges of bins; infinity for a class that reaches the share nowhere. A class that the teacher finds nowhere
        takes that of all classes together.
    """
    counts_2CB = torch.stack([right_CB, voxels_CB])
    counts_2CB = torch.where(voxels_CB.any(-1, keepdim=True), counts_2CB, counts_2CB.sum(1, keepdim=True))
    right_CB, voxels_CB = counts_2CB.flip(-1).cumsum(-1).flip(-1).double()  # of a bin and all above
    precise_CB = right_CB / voxels_CB >= precision  # 0 / 0 is not
    bins = voxels_CB.shape[-1]
    edge_B = torch.arange(bins, device=voxels_CB.device).double() / bins
    return tuple(torch.where(precise_CB, edge_B, torch.inf).amin(-1).tolist())


def _table(names: Sequence[str], thresholds: Sequence[float]) -> str:
    """A few classes a line."""
    cells = [
        f"{name} {'never' if math.isinf(threshold) else f'{threshold:.2f}'}"
        for name, threshold in zip(names, thresholds, strict=True)
    ]
    width = max(map(len, cells))
    lines = [cells[first : first + _IN_A_LINE] for first in range(0, len(cells), _IN_A_LINE)]
    return "\n".join("  ".join(["", *(cell.ljust(width) for cell in line)]).rstrip() for line in lines)


def _by_class(threshold: float | Mapping[str, float], classes: ClassSet) -> tuple[float, ...]:
    """The threshold of each class, in the order of their ids."""
    by_name = threshold if isinstance(threshold, Mapping) else {"default": threshold}
    unknown = [name for name in by_name if name not in (*classes.names, "default")]
    if unknown:
        raise InputError(
            f"threshold.{unknown[0]}: {classes.name} has no such class: give default or one of "
            f"{', '.join(classes.names)}"
        )
    if "default" not in by_name:
        raise InputError("threshold.default must be given: the threshold of the classes that are not named")
    return tuple(float(by_name.get(name, by_name["default"])) for name in classes.names)
