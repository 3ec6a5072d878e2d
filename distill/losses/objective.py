"""The objective: named, weighted terms, one like the other, whether they listen to labels or to teachers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.frame import Frame
from distill.networks.prediction import Occupancy
from distill.teaching.taught import Taught

T = TypeVar("T")


class Needs(NamedTuple):
    """What a term cannot do without; nothing else is loaded.

    Attributes:
        depth: LiDAR depth maps on the cells of the network's depth bins (`Frame.depth`).
        rays: what LiDAR and cameras see along rays (`Frame.rays`).
        proposals: scores of a network that proposes voxels (`Occupancy.proposals`).
        answers: questions that teachers must answer: "voxels", "columns", or those of a signal of one's own.
        answers_unlabelled: further ones about frames without labels; not asked where a teacher has none of them.
        prior: of frames without labels, as `mask_camera`, what cameras see as a rule (docs/formulas.md 4.9).
        unlabelled: frames without labels; where there are none, the term has nothing to say.
        hidden: what teachers say of voxels of labelled frames that no camera shows.
        hidden_unlabelled: the same of frames without labels.
        calibration: how often its teachers are right about labels, before the first step (`ListeningTerm.calibrate`).
    """

    depth: bool = False
    rays: bool = False
    proposals: bool = False
    answers: frozenset[str] = frozenset()
    answers_unlabelled: frozenset[str] = frozenset()
    prior: bool = False
    unlabelled: bool = False
    hidden: bool = False
    hidden_unlabelled: bool = False
    calibration: bool = False


class Lesson:
    """One step of training: a batch, what the network says of it, and what its teachers say.

    Attributes:
        frame: the batch.
        prediction: of the network.
        teachers: by name.
        step: how many steps of the training came before.
    """

    def __init__(self, frame: Frame, prediction: Occupancy, teachers: Mapping[str, Taught], step: int) -> None:
        self.frame, self.prediction, self.teachers, self.step = frame, prediction, teachers, step
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, work_out: Callable[[], T]) -> T:
        """What several terms need, worked out by the first that asks; `key` names it."""
        if key not in self._known:
            self._known[key] = work_out()
        return self._known[key]


class Term(nn.Module):
    """One term of the objective; calling it with a `Lesson` gives a scalar, not yet weighted.

    A term may own weights: they are optimised, distributed and saved with the network's, and left out of exports.

    Args:
        weight: what the scalar is multiplied with.

    Attributes:
        needs: what must be loaded.
        teachers: names of those that it asks; None: all.
    """

    needs: Needs = Needs()
    teachers: tuple[str, ...] | None = ()

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def listens_to(self, name: str) -> bool:
        """Whether it asks the teacher of this name."""
        return self.teachers is None or name in self.teachers


class ListeningTerm(Term):
    """A term that listens to teachers: the sum of what each of them adds, by the teachers' weights.

    Args:
        weight: of the term.
        teachers: names of those that it listens to; None: all.
    """

    def __init__(self, weight: float, teachers: Sequence[str] | None) -> None:
        super().__init__(weight)
        self.teachers = None if teachers is None else tuple(teachers)

    def forward(self, lesson: Lesson) -> Tensor:
        """Sum over its teachers."""
        parts = [
            teacher.weight * self.listen(lesson, teacher)
            for name, teacher in lesson.teachers.items()
            if self.listens_to(name)
        ]
        return torch.stack(parts).sum()

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """What one teacher adds, a scalar."""
        raise NotImplementedError

    def calibrate(self, teacher: str, voxels_CB: Tensor, right_CB: Tensor) -> str:
        """Take note of how often a teacher is right; returns what it makes of that, to be said to the user.

        Args:
            teacher: its name.
            voxels_CB, right_CB: int64, see `distill.metrics.Calibration`.
        """
        raise NotImplementedError


class Objective(nn.Module):
    """The weighted sum of terms.

    Args:
        terms: by name, in the order in which they are worked out.
        warmup_steps: over so many the weights of listening terms rise from 0 (docs/formulas.md 4.8); 0: they are full
            from the start.
    """

    def __init__(self, terms: Mapping[str, Term], warmup_steps: int = 0) -> None:
        super().__init__()
        self.terms, self.warmup_steps = nn.ModuleDict(terms), warmup_steps

    def items(self) -> Iterator[tuple[str, Term]]:
        """Name and term."""
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            yield name, term

    @property
    def needs_depth(self) -> bool:
        """Whether a term asks for LiDAR depth."""
        return any(term.needs.depth for _, term in self.items())

    @property
    def needs_rays(self) -> bool:
        """Whether a term asks what is seen along rays."""
        return any(term.needs.rays for _, term in self.items())

    @property
    def needs_prior(self) -> bool:
        """Whether a term asks what cameras see as a rule."""
        return any(term.needs.prior for _, term in self.items())

    def asked(self, teacher: str) -> frozenset[str]:
        """The questions that a teacher must answer; empty: no term listens to it."""
        return frozenset(question for _, term in self._listening(teacher) for question in term.needs.answers)

    def asks_hidden(self, teacher: str) -> tuple[bool, bool]:
        """Whether terms ask the teacher about voxels that no camera shows: of frames with, and without labels."""
        needs = [term.needs for _, term in self._listening(teacher)]
        return any(each.hidden for each in needs), any(each.hidden_unlabelled for each in needs)

    def asked_unlabelled(self, teacher: str) -> frozenset[str]:
        """The further questions that it must answer about frames without labels, if it teaches any."""
        return frozenset(question for _, term in self._listening(teacher) for question in term.needs.answers_unlabelled)

    def listeners(self, teacher: str) -> list[str]:
        """Names of the terms that listen to a teacher."""
        return [name for name, _ in self._listening(teacher)]

    def asks_calibration(self, teacher: str) -> bool:
        """Whether a term asks how often a teacher is right about labels."""
        return any(term.needs.calibration for _, term in self._listening(teacher))

    def calibrate(self, teacher: str, voxels_CB: Tensor, right_CB: Tensor) -> list[str]:
        """Tell it the terms that ask, see `ListeningTerm.calibrate`; returns what they make of it, each thing once."""
        asking = [term for _, term in self._listening(teacher) if term.needs.calibration]
        told = [term.calibrate(teacher, voxels_CB, right_CB) for term in asking if isinstance(term, ListeningTerm)]
        return list(dict.fromkeys(told))

    def _listening(self, teacher: str) -> list[tuple[str, Term]]:
        return [(name, term) for name, term in self.items() if term.listens_to(teacher)]

    @property
    def idle_with_labels(self) -> list[str]:
        """Names of the terms that have nothing to say where every frame has labels."""
        return [name for name, term in self.items() if term.needs.unlabelled]

    @property
    def listens_with_labels(self) -> bool:
        """Whether some term has something to learn from teachers where every frame has labels."""
        return any(isinstance(term, ListeningTerm) and not term.needs.unlabelled for _, term in self.items())

    def check_teachers(self, names: Sequence[str]) -> None:
        """Raise InputError where a term listens to a teacher that there is not."""
        for name, term in self.items():
            if term.teachers != ():
                unknown = [teacher for teacher in term.teachers or () if teacher not in names]
                if unknown or not names:
                    there = f"there are {', '.join(names)}" if names else "there is none"
                    raise InputError(
                        f"the term {name} listens to {', '.join(unknown) or 'teachers'}, but {there}: add it to "
                        "teachers, or set kd=none"
                    )

    def forward(self, lesson: Lesson) -> dict[str, tuple[Tensor, Tensor]]:
        """Each term by name: as it is, and weighted."""
        risen = min(1.0, lesson.step / self.warmup_steps) if self.warmup_steps else 1.0
        found = {}
        for name, term in self.items():
            value = term(lesson)
            weight = term.weight * risen if isinstance(term, ListeningTerm) else term.weight
            found[name] = value, weight * value
        return found

    def gradient_norms(self, weighted: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
        """The norm of each weighted term's gradient, and of all supervised ones together, as "supervised".

        Args:
            weighted: of `forward`; their graph is kept.
            parameters: of the network, that are trained.
        """
        norms: dict[str, float] = {}
        supervised = [torch.zeros_like(parameter) for parameter in parameters]
        for name, term in self.items():
            found = torch.autograd.grad(weighted[name], parameters, retain_graph=True, allow_unused=True)
            gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
            norms[name] = _norm(gradients)
            if not isinstance(term, ListeningTerm):
                torch._foreach_add_(supervised, gradients)
        return norms | {"supervised": _norm(supervised)}


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt())
