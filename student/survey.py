"""What there is to learn from: counted, checked and said before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from distill import ranks
from distill.errors import InputError
from distill.losses.objective import Objective
from distill.nuscenes.dataroot import open_labels
from distill.nuscenes.index import KeyframeIndex, Keyframes
from distill.nuscenes.inventory import Inventory, place_of_labels, settle_missing, sources_of, summary, take_stock
from distill.nuscenes.labels import LabelSource, WithPrior, camera_prior
from distill.nuscenes.layout import LIDAR
from distill.nuscenes.rays import RayDraw
from distill.nuscenes.withheld import Withheld
from distill.teaching import Provider
from student.learner import open_teachers, questions


@dataclass(frozen=True)
class Plan:
    """What a run is about to do.

    Attributes:
        config: of the run.
        index: of the dataroot.
        network: the student.
        objective: the terms.
    """

    config: DictConfig
    index: KeyframeIndex
    network: nn.Module
    objective: Objective

    @cached_property
    def teachers(self) -> list[Provider]:
        """To whom a term listens, opened when they are first asked for.

        Raises:
            InputError: a term listens to one that there is not, or one cannot answer.
        """
        asked = any(questions(self.objective, self.network, str(name)) for name in self.config.teachers)
        unlabelled = self.unlabelled() if asked else frozenset()
        return open_teachers(self.config, self.objective, self.network, self.index.tokens, unlabelled)

    @cached_property
    def depth_stride(self) -> int | None:
        """Of the depth maps that terms and teachers ask for; None where nobody does."""
        wanted = self.objective.needs_depth or any(teacher.needs_depth for teacher in self.teachers)
        return getattr(self.network, "depth_stride", None) if wanted else None

    @cached_property
    def rays(self) -> RayDraw | None:
        """Draws the rays that terms ask for; None where none does.

        Raises:
            InputError: a term does, and there is no nuScenes-lidarseg.
        """
        if not self.objective.needs_rays:
            return None
        grid, classes = instantiate(self.config.grid), instantiate(self.config.classes)
        return RayDraw(**self.config.objective.rays, grid=grid, classes=classes, points=self.index.lidarseg())

    @property
    def needs_scans(self) -> bool:
        """Whether training keyframes need their LiDAR scans."""
        return self.points or self.depth_stride is not None or self.objective.needs_rays

    @property
    def lidar(self) -> bool:
        """Whether the network is given LiDAR points."""
        return bool(self.config.student.inputs.lidar)

    @cached_property
    def points(self) -> bool:
        """Whether the network or a teacher is given LiDAR points in training."""
        return self.lidar or any(teacher.needs_points for teacher in self.teachers)

    @property
    def sources(self) -> list[str]:
        """What the numbers of the run depend on; names of `Inventory.sources`."""
        return [source for source in sources_of(self.index.channels) if self.needs_scans or source != LIDAR]

    def keyframes(self, split: str) -> Keyframes:
        """Those of split "train" or "val" that are asked for, whole or not."""
        data, trainer = self.config.data, self.config.trainer
        if split == "train":
            return self.index.keyframes(data.train_split)[: trainer.max_samples]
        return self.index.keyframes(data.val_split)[: trainer.max_val_samples]

    def labels(self, split: str) -> LabelSource:
        """The labels of split "train" or "val", those of "train" without what `trainer.withheld` hides.

        Raises:
            InputError: there are none on such a grid, or all or none would be hidden.
        """
        labels, hidden = open_labels(self.config.data, instantiate(self.config.grid)), self.config.trainer.withheld
        if split == "val" or hidden is None:
            return labels
        return Withheld(labels, self.keyframes(split).scenes, **hidden)

    def unlabelled(self) -> frozenset[str]:
        """The training keyframes that have no label file, whole or not."""
        labels = self.labels("train")
        paths = {keyframe.token: labels.path(keyframe) for keyframe in self.keyframes("train")}
        return frozenset(token for token, path in paths.items() if path is None or not path.exists())


def survey(plan: Plan, output: Path) -> tuple[dict[str, Inventory], str]:
    """Splits "train" and "val", and a summary, which is printed; what is missing is listed in the folder `output`.

    Raises:
        InputError: files are missing, a teacher is of other frames, or there is nothing to learn from.
    """
    config, teachers = plan.config, plan.teachers
    labels = {split: plan.labels(split) for split in ("train", "val")}
    splits = take_splits(plan, labels)
    settle_missing(splits, config.data.missing, output / "missing_files.txt", without_scans(plan))
    train = splits["train"]
    if plan.rays is not None:
        plan.rays.check(train.keyframes)
    for teacher in teachers:
        teacher.check({token: train.digests[token] for token in train.keyframes.tokens})
    taught = sum(any(teacher.holds(token) for teacher in teachers) for token in train.keyframes.tokens)
    told = told_of(plan, splits, labels, taught)
    if ranks.rank() == 0:
        print(told, flush=True)
    check_something_to_learn(train, taught, plan, labels["train"])
    return splits, told


def without_scans(plan: Plan) -> str:
    """How to train without LiDAR, where the network itself can."""
    if plan.depth_stride is None or plan.points or plan.objective.needs_rays:
        return ""
    values = [f"objective.terms.{name}.weight=0" for name, term in plan.objective.items() if term.needs.depth]
    values += [f"teachers.{teacher.name}.measured_depth=false" for teacher in plan.teachers if teacher.needs_depth]
    return f"; LiDAR is for depth alone: {' '.join(values)} trains without"


def told_of(plan: Plan, splits: dict[str, Inventory], labels: dict[str, LabelSource], taught: int) -> str:
    """The summary: `taught` is how many training keyframes have a teacher."""
    (train, val), teachers = splits.values(), plan.teachers
    speakers = ", ".join(teacher.speakers() for teacher in teachers) or "kd=none"
    others = {**withheld(train, labels["train"]), "with a teacher": {"train": f"{taught} ({speakers})"}}
    told = [summary(splits, labels["val"], others)]
    if not val.labelled:
        place = place_of_labels(val, labels["val"])
        told.append(f"no validation keyframe has labels ({place}): nothing will be scored")
    told += [remark for teacher in teachers for remark in teacher.remarks()]
    if idle := idle_terms(plan, train):
        told.append(f"{', '.join(idle)} have nothing to say: all training keyframes have labels")
    return "\n".join(told)


def take_splits(plan: Plan, labels: dict[str, LabelSource]) -> dict[str, Inventory]:
    """Inventories of "train" and "val"."""
    free = instantiate(plan.config.classes).free
    scans = {"train": plan.needs_scans, "val": plan.lidar}
    needed = {"cameras": True, "history": plan.config.student.inputs.history}
    return {
        split: take_stock(plan.keyframes(split), labels[split], free, lidar=scans[split], **needed) for split in scans
    }


def training_labels(plan: Plan, train: Inventory) -> LabelSource:
    """The labels of split "train"; for keyframes without any, what cameras see as a rule, where a term asks for it.

    Raises:
        InputError: it does, and no keyframe has labels.
    """
    labels, keyframes = plan.labels("train"), train.keyframes
    if not plan.objective.needs_prior or len(train.labelled) == len(keyframes):
        return labels
    labelled = keyframes.where([token in train.labelled for token in keyframes.tokens])
    return WithPrior(labels, camera_prior(labels, labelled))


def withheld(train: Inventory, labels: LabelSource) -> dict[str, dict[str, str]]:
    """A column of the summary: how many training keyframes have their labels withheld; no column if that is not asked.

    Args:
        train: what is trained on.
        labels: of split "train", see `Plan.labels`.
    """
    if not isinstance(labels, Withheld):
        return {}
    count = sum(scene in labels.scenes for scene in train.keyframes.scenes)
    return {"withheld": {"train": f"{count} ({len(labels.scenes)} scenes)"}}


def idle_terms(plan: Plan, train: Inventory) -> list[str]:
    """Names of the terms that have nothing to say, as they are about keyframes without labels and there is none."""
    return plan.objective.idle_with_labels if len(train.labelled) == len(train.keyframes) else []


def check_something_to_learn(train: Inventory, taught: int, plan: Plan, labels: LabelSource) -> None:
    """Raise InputError unless some keyframe teaches something."""
    config = plan.config
    if not train.keyframes:
        raise InputError(f"split {config.data.train_split} has no keyframe that is whole: there is nothing to train on")
    if not train.labelled and not taught and not plan.objective.needs_rays:
        raise InputError(
            f"none of the {len(train.keyframes)} training keyframes has labels ({place_of_labels(train, labels)}), and "
            f"none a teacher (kd={config.kd.name}): there is nothing to learn; put the labels there, or dump a teacher"
        )
    if plan.teachers and not taught:
        raise InputError(
            f"none of the {len(train.keyframes)} training keyframes has a teacher in what "
            f"{', '.join(teacher.name for teacher in plan.teachers)} has: kd={config.kd.name} would learn what kd=none "
            "does; dump them with occ-dump, or set kd=none"
        )
    idle = idle_terms(plan, train)
    if idle and not plan.objective.listens_with_labels:
        raise InputError(
            f"{', '.join(idle)} of kd={config.kd.name} are about keyframes without labels, and all "
            f"{len(train.keyframes)} training keyframes have some: set kd.frames=all, withhold labels with "
            "trainer.withheld, or choose another kd"
        )
    seen = taught or plan.objective.needs_rays
    if train.labelled and not seen and not train.masks[:, 0].any() and config.objective.mask == "camera":
        raise InputError(
            f"mask_camera is empty in all {len(train.masks)} label files looked at: there is nothing to learn; "
            "get the labels again, or set objective.mask=all"
        )
