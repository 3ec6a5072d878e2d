"""What the values of teachers may be: who teaches in training, and who is dumped."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from conf.schema.networks import Inputs
from conf.schema.values import (
    Built,
    Count,
    CountOrNone,
    Device,
    Known,
    Name,
    NotNegative,
    Number,
    Place,
    Positive,
    Probability,
    Seed,
    Size,
    StoreCache,
    StorePlace,
    TaughtFrames,
    Text,
    distinct,
    rising,
)


class Stored(Known):
    """`distill.teaching.stored.open_stored`."""

    paths: Annotated[list[StorePlace], AfterValidator(distinct)] | None
    folder: StorePlace
    cache: StoreCache | None = None
    missing: Literal["error", "skip"]
    signals: Annotated[list[Text], AfterValidator(distinct)] | None
    weight: NotNegative


class Ema(Known):
    """`distill.teaching.ema.Ema`."""

    frames: TaughtFrames
    measured_depth: bool
    momentum: Annotated[Number, Field(ge=0, lt=1)]
    warmup: CountOrNone
    milestones: Annotated[list[Count], AfterValidator(rising)]
    decay: Annotated[Number, Field(gt=0, le=1)]
    interval: Count
    ramp: CountOrNone
    weight: NotNegative


class FusionBranch(Known):
    """`distill.teaching.branch.FusionBranch`."""

    student_channels: Count
    bev_stride: Count
    point_channels: Count
    slices: Count
    channels: Count
    head_channels: Count
    scales: Count
    weight: NotNegative


class NetworkTeacher(Known):
    """`teacher_dump.teachers.network.NetworkTeacher`."""

    name: Name
    checkpoint: Place
    weights: Literal["ema", "raw"]


class PublishedTeacher(Known):
    """`teacher_dump.teachers.network.PublishedTeacher`."""

    name: Name
    checkpoint: Place
    inputs: Inputs
    network: Built
    grid: Built


class GaussianFormerTeacher(Known):
    """`teacher_dump.teachers.gaussianformer.teacher.GaussianFormerTeacher`."""

    name: Name
    checkpoint: Place
    image_size: Size
    grid: Built
    seed: Seed
    network: Built


class ProcessTeacher(Known):
    """`teacher_dump.teachers.process.teacher.ProcessTeacher`."""

    name: Name
    command: Text
    timeout: Positive
    image_size: Size
    device: Device


class FilesTeacher(Known):
    """`teacher_dump.teachers.files.teacher.FilesTeacher`."""

    name: Name
    folder: Place
    format: Literal["tokens", "prototype", "predictions", "sparse"]
    grid: Literal["occ3d", "surroundocc"]
    kind: Literal["log_probs", "probs", "logits", "classes"] | None
    axes: Text | None
    classes: Text | list[Text]
    confidence: Probability | None
    key: Text | None
    covered: Text | None
    positions: Place | dict[str, Place] | None
    image_size: Size


BUILT: dict[str, type[Known]] = {
    "distill.teaching.stored.open_stored": Stored,
    "distill.teaching.ema.Ema": Ema,
    "distill.teaching.branch.FusionBranch": FusionBranch,
    "teacher_dump.teachers.network.NetworkTeacher": NetworkTeacher,
    "teacher_dump.teachers.network.PublishedTeacher": PublishedTeacher,
    "teacher_dump.teachers.gaussianformer.teacher.GaussianFormerTeacher": GaussianFormerTeacher,
    "teacher_dump.teachers.process.teacher.ProcessTeacher": ProcessTeacher,
    "teacher_dump.teachers.files.teacher.FilesTeacher": FilesTeacher,
}
