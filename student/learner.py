"""What is trained: a network and its objective as one module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from distill.errors import InputError
from distill.frame import Frame
from distill.losses.objective import Lesson, Objective
from distill.losses.regions import found_classes
from distill.teaching import Provider, Pupil
from distill.teaching.taught import Taught
from kernels.pooled_labels import UNKNOWN, pooled_labels
from student.quantisation import FakeQuantisation


class Learner(nn.Module):
    """A network and its objective, distributed, optimised and clipped together.

    Args:
        network: maps a batch of frames to an `Occupancy`; it alone is averaged (EMA), scored and exported.
        objective: may own weights, too.
        teachers: to whom the objective listens; may own weights, too.
        precision: of the networks under autocast; None: float32. The objective always computes in float32.
        int8: simulates 8 bits in the network; None: it computes as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        teachers: Sequence[Provider],
        precision: torch.dtype | None,
        int8: FakeQuantisation | None = None,
    ) -> None:
        super().__init__()
        self.network, self.objective, self.int8 = network, objective, int8
        self.teachers, self.precision = nn.ModuleDict({each.name: each for each in teachers}), precision

    def trained(self) -> list[nn.Parameter]:
        """What is optimised: all that network and objective own, and what teachers learn by gradients."""
        of_teachers = [parameter for parameter in self.teachers.parameters() if parameter.requires_grad]
        return [*self.network.parameters(), *self.objective.parameters(), *of_teachers]

    def simulating(self, network: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the network, or its average, computes in 8 bits where it is trained for them."""
        return nullcontext() if self.int8 is None else self.int8.of(network)

    def forward(self, frame: Any, step: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The terms of a batch by name, each as it is, and weighted; `step` is how many steps came before."""
        providers: list[Provider] = [*self.teachers.values()]  # type: ignore[list-item]
        for each in providers:
            each.before_step(self.network, step)
            if each.name == proposing(self.network):
                frame = replace(frame, proposals=proposals_of(each.taught(frame), frame))
        with torch.autocast(frame.images.device.type, dtype=self.precision, enabled=self.precision is not None):
            with self.simulating(self.network):
                prediction = self.network(frame)
            teachers = {each.name: each.taught(frame, prediction) for each in providers}
        return self.objective(Lesson(frame, prediction, teachers, step))


def make_objective(config: DictConfig, network: nn.Module) -> Objective:
    """The terms of `config.objective` and `config.kd`, but those of weight 0 and those about what no network says.

    That is depth without depth bins, and proposals of a network that makes none.

    Raises:
        InputError: none is left.
    """
    terms = {**config.objective.terms, **config.kd.terms}
    built = {name: instantiate(node) for name, node in terms.items() if node.weight}
    predicts_depth = getattr(network, "depth_stride", None) is not None
    proposes = getattr(network, "proposes", False)
    left = {
        name: term
        for name, term in built.items()
        if (predicts_depth or not term.needs.depth) and (proposes or not term.needs.proposals)
    }
    if not left:
        raise InputError(
            f"objective.terms: {', '.join(built)} is about depth or proposals, which student={config.student.name} "
            "does not predict: there is nothing to learn; give another term a weight"
        )
    return Objective(left, config.kd.warmup_steps)


def proposing(network: nn.Module) -> str | None:
    """Name of the teacher whose proposals a network takes while it learns, see `OccupancyNetwork`."""
    return getattr(network, "proposals_of", None)


def proposals_of(teacher: Taught, frame: Frame) -> Tensor:
    """What a teacher finds occupied at half resolution (docs/formulas.md 11.6), see `Frame.proposals`."""
    index_V = teacher.taught_B.repeat_interleave(frame.semantics[0].numel()).nonzero().squeeze(1)
    found_BXYZ = found_classes(teacher, index_V[teacher.covered(index_V)], frame.semantics.shape)
    coarse_BXYZ = pooled_labels(found_BXYZ, 2, teacher.free)
    return torch.where(coarse_BXYZ == UNKNOWN, UNKNOWN, (coarse_BXYZ != teacher.free).to(torch.uint8))


def questions(objective: Objective, network: nn.Module, teacher: str) -> frozenset[str]:
    """The questions that a teacher must answer to the terms and to the network; empty: nobody listens to it."""
    return objective.asked(teacher) | (frozenset({"voxels"}) if proposing(network) == teacher else frozenset())


def open_teachers(
    config: DictConfig,
    objective: Objective,
    network: nn.Module,
    tokens: Sequence[str],
    unlabelled: Collection[str],
) -> list[Provider]:
    """The teachers of `config.teachers` to whom a term, or the network, listens.

    Args:
        config: of the run.
        objective: the terms.
        network: the student.
        tokens: all keyframes of the dataroot.
        unlabelled: training keyframes without labels.

    Raises:
        InputError: somebody listens to one that there is not, or one cannot answer.
    """
    objective.check_teachers([str(name) for name in config.teachers])
    if proposing(network) not in (None, *config.teachers):
        raise InputError(
            f"student.network.proposals.teacher={proposing(network)}: there is no such teacher, but "
            f"{', '.join(map(str, config.teachers)) or 'none'}: add it to teachers, or set it to null"
        )
    grid, classes = instantiate(config.grid), instantiate(config.classes)

    def pupil(teacher: str, asked: Collection[str]) -> Pupil:
        asked_unlabelled, hidden = objective.asked_unlabelled(teacher), objective.asks_hidden(teacher)
        if teacher == proposing(network):
            hidden = True, True
        return Pupil(network, grid, classes, asked, asked_unlabelled, hidden, tokens, unlabelled)

    opened = [
        instantiate(node, _partial_=True)(name=name, pupil=pupil(str(name), asked))
        for name, node in config.teachers.items()
        if (asked := questions(objective, network, str(name)))
    ]
    for each in opened:
        if each.changes and each.name == proposing(network):
            raise InputError(
                f"student.network.proposals.teacher={each.name} says nothing before the student does: name one with a "
                "store, or set it to null"
            )
    return opened
