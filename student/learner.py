"""What is trained: a network and its objective as one module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from distill.errors import InputError
from distill.losses.objective import Lesson, Objective
from distill.teaching import Provider, Pupil


class Learner(nn.Module):
    """A network and its objective, distributed, optimised and clipped together.

    Args:
        network: maps a batch of frames to an `Occupancy`; it alone is averaged (EMA), scored and exported.
        objective: may own weights, too.
        teachers: to whom the objective listens; may own weights, too.
        precision: of the networks under autocast; None: float32. The objective always computes in float32.
    """

    def __init__(
        self, network: nn.Module, objective: Objective, teachers: Sequence[Provider], precision: torch.dtype | None
    ) -> None:
        super().__init__()
        self.network, self.objective = network, objective
        self.teachers, self.precision = nn.ModuleDict({each.name: each for each in teachers}), precision

    def trained(self) -> list[nn.Parameter]:
        """What is optimised: all that network and objective own, and what teachers learn by gradients."""
        of_teachers = [parameter for parameter in self.teachers.parameters() if parameter.requires_grad]
        return [*self.network.parameters(), *self.objective.parameters(), *of_teachers]

    def forward(self, frame: Any, step: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The terms of a batch by name, each as it is, and weighted; `step` is how many steps came before."""
        providers: list[Provider] = [*self.teachers.values()]  # type: ignore[list-item]
        for each in providers:
            each.before_step(self.network, step)
        with torch.autocast(frame.images.device.type, dtype=self.precision, enabled=self.precision is not None):
            prediction = self.network(frame)
            teachers = {each.name: each.taught(frame, prediction) for each in providers}
        return self.objective(Lesson(frame, prediction, teachers, step))


def make_objective(config: DictConfig, network: nn.Module) -> Objective:
    """The terms of `config.objective` and `config.kd`, but those of weight 0 and those of depth without depth bins.

    Raises:
        InputError: none is left.
    """
    terms = {**config.objective.terms, **config.kd.terms}
    built = {name: instantiate(node) for name, node in terms.items() if node.weight}
    predicts_depth = getattr(network, "depth_stride", None) is not None
    left = {name: term for name, term in built.items() if predicts_depth or not term.needs.depth}
    if not left:
        raise InputError(
            f"objective.terms: {', '.join(built)} is about depth, which student={config.student.name} does not "
            "predict: there is nothing to learn; give another term a weight"
        )
    return Objective(left, config.kd.warmup_steps)


def open_teachers(
    config: DictConfig,
    objective: Objective,
    network: nn.Module,
    tokens: Sequence[str],
    unlabelled: Collection[str],
) -> list[Provider]:
    """The teachers of `config.teachers` to whom a term listens.

    Args:
        config: of the run.
        objective: the terms.
        network: the student.
        tokens: all keyframes of the dataroot.
        unlabelled: training keyframes without labels.

    Raises:
        InputError: a term listens to one that there is not, or one cannot answer.
    """
    objective.check_teachers([str(name) for name in config.teachers])
    grid, classes = instantiate(config.grid), instantiate(config.classes)

    def pupil(asked: Collection[str], asked_unlabelled: Collection[str]) -> Pupil:
        return Pupil(network, grid, classes, asked, asked_unlabelled, tokens, unlabelled)

    return [
        instantiate(node, _partial_=True)(name=name, pupil=pupil(asked, objective.asked_unlabelled(str(name))))
        for name, node in config.teachers.items()
        if (asked := objective.asked(str(name)))
    ]
