"""What every value of the programs may be: names, types, ranges and choices. Defaults stand in the YAML files.

A node with a `_target_` of this project is checked by the class of `BUILT`, wherever it stands; one of a user's own is
left to its constructor.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

MISSING = "???"  # what OmegaConf leaves where a value must be given


def _place(path: str) -> str:
    """An absolute path, so that it means the same from every folder; `pkg://package/file` names a shipped file."""
    return path if path.startswith("pkg://") else os.path.abspath(os.path.expanduser(path))


def _text(value: Any) -> Any:
    """Hydra reads `name=2024` as a number."""
    return str(value) if type(value) is int else value


def _weights(value: str) -> str:
    return value if value in ("wheel", "none") else _place(value)


def _file_or_none(value: str) -> str:
    return value if value == "none" else _place(value)


def _no_folder(name: str) -> str:
    if name in (".", ".."):
        raise ValueError("should be a plain name")
    return name


def _rising(edges: list[float]) -> list[float]:
    if any(not low < high for low, high in itertools.pairwise(edges)):
        raise ValueError("should rise from one number to the next")
    return edges


def _one_or_several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("names one of them twice")
    return values


def _share_and_seed(value: Any) -> Any:
    if not isinstance(value, dict | None):
        raise ValueError("should be null, or a group: {share: 0.75, seed: 0}")
    return value


def _balance(value: Any) -> Any:
    if value != "log" and not (type(value) in (int, float) and 0 <= value <= 1):
        raise ValueError("should be 'log', or a power of 1 / frequency from 0 to 1, such as 0.5 (sqrt)")
    return value


def _threshold(value: Any) -> Any:
    by_name = value if isinstance(value, dict) else {"default": value}
    probable = all(type(each) in (int, float) and 0 <= each <= 1 for each in by_name.values())
    fits = by_name.get("precision") != 0 and len(by_name) == 1 if "precision" in by_name else "default" in by_name
    if not (probable and fits):
        raise ValueError(
            "should be a probability, or {default: a probability, CLASS: its own}, or {precision: a share above 0}"
        )
    return value


def _looks_back(history: int) -> int:
    if history < 1:
        raise ValueError("a network that looks back has a past to look at: set student.inputs.history=1, or more")
    return history


Text = Annotated[str, BeforeValidator(_text), StringConstraints(min_length=1)]
# becomes part of a file's name
Name = Annotated[Text, StringConstraints(pattern=r"^[^/\s\x00][^/\x00]*$"), AfterValidator(_no_folder)]
Place = Annotated[Text, AfterValidator(_place)]
FileOrNone = Annotated[Text, AfterValidator(_file_or_none)]
Split = Annotated[Text, StringConstraints(pattern=r"^\S+$")]
Splits = Annotated[list[Split], Field(min_length=1), AfterValidator(_distinct)]
Signal = Annotated[Text, StringConstraints(pattern=r"^\w+(\.\w+)*$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Threshold = Annotated[Any, AfterValidator(_threshold)]
Size = Annotated[list[Count], Field(min_length=2, max_length=2)]
Interval = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(_rising)]
Edges = Annotated[list[float], Field(min_length=2), AfterValidator(_rising)]
Scales = Annotated[list[Literal[2, 4, 8]], Field(min_length=1), AfterValidator(_distinct)]
Mask = Literal["camera", "lidar", "all"]
TaughtMask = Literal["camera", "lidar", "occupied", "all"]
Unlabelled = Literal["seen", "prior", "all"]
Balance = Annotated[Any, AfterValidator(_balance)]
BalanceBy = Literal["class", "mass"]
Confidence = Literal["none", "entropy", "agreement"]
TaughtFrames = Literal["unlabelled", "all"]
Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class Node(BaseModel):
    """A configuration node that holds what is declared and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Built(BaseModel):
    """A node that describes an object; see `BUILT` for what is known of its arguments."""

    model_config = ConfigDict(extra="allow", strict=True)
    target: Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)+$")] = Field(alias="_target_")


class Known(Node):
    """The arguments of an object of this project."""

    target: str = Field(alias="_target_")


class World(Known):
    """`distill.demo.WorldConfig`."""

    seed: Seed
    train_scenes: Count
    val_scenes: Count
    keyframes_per_scene: Count
    image_size: Size
    jpeg_quality: Annotated[int, Field(ge=1, le=95)]


class Grid(Known):
    """`distill.grids.named_grid`."""

    name: Literal["occ3d", "surroundocc"]


class Encoder(Known):
    """`distill.networks.blocks.encoder.ImageEncoder`."""

    name: Text
    weights: Annotated[str, AfterValidator(_weights)]
    levels: Annotated[list[CountOrNone], Field(min_length=1), AfterValidator(_rising)]
    channels: Count
    frozen_levels: CountOrNone


class Lift(Known):
    """`distill.networks.lift.LiftSplat`."""

    in_channels: Count
    channels: Count
    depth_range: Interval
    depth_bins: Annotated[int, Field(ge=2)]
    bev_stride: Count
    height_slices: Count
    grid: Built

    @model_validator(mode="after")
    def _divides(self) -> Lift:
        if self.channels % self.height_slices:
            raise ValueError(f"channels={self.channels} is no multiple of height_slices={self.height_slices}")
        return self


class Completed(Known):
    """An object that may be `_partial_`: then the network it belongs to says its `in_channels`."""

    partial: bool = Field(default=False, alias="_partial_")
    in_channels: Count | None = Field(default=None, validate_default=True)

    @field_validator("in_channels")
    @classmethod
    def _said_once(cls, value: int | None, others: ValidationInfo) -> int | None:
        partial = others.data.get("partial")
        if value is None and not partial:
            raise PydanticCustomError("missing", "must be given")
        if value is not None and partial:
            raise ValueError("should not be given, the network says it")
        return value


class BEVEncoder(Completed):
    """`distill.networks.blocks.bev_encoder.BEVEncoder`."""

    widths: Annotated[list[Count], Field(min_length=2)]
    blocks: list[Count]
    out_channels: Count

    @model_validator(mode="after")
    def _fits(self) -> BEVEncoder:
        if len(self.blocks) != len(self.widths) - 1:
            raise ValueError(f"{len(self.widths)} widths need {len(self.widths) - 1} numbers of blocks")
        return self


class PastFusion(Known):
    """`distill.networks.temporal.PastFusion`."""

    channels: Count
    history: Annotated[int, AfterValidator(_looks_back)]
    grid: Built


class Head(Completed):
    """`distill.networks.blocks.head.ChannelToHeight`."""

    hidden_channels: Count
    bev_stride: Count
    grid: Built
    classes: Built


class DepthHead(Known):
    """`distill.networks.monoocc.stage.DepthHead`."""

    in_channels: Count
    depth_range: Interval
    depth_bins: Annotated[int, Field(ge=2)]
    points: Count
    grid: Built


class QueryProposals(Known):
    """`distill.networks.monoocc.proposals.QueryProposals`."""

    rectified: bool
    weights: FileOrNone


class ProposalStage(Known):
    """`distill.networks.monoocc.stage.ProposalStage`."""

    depth: Built | None
    network: Built
    teacher: Text | None
    grid: Built


class CrossViewTransformer(Known):
    """`distill.networks.monoocc.views.CrossViewTransformer`."""

    channels: Annotated[int, Field(ge=4, multiple_of=4)]
    layers: Count
    around: bool
    weights: FileOrNone


class VoxelAttention(Known):
    """`distill.networks.monoocc.attention.VoxelAttention`, whose grid the network says."""

    partial: Literal[True] = Field(alias="_partial_")
    in_channels: Count
    channels: Count
    layers: Count
    key_points: Count
    groups: Count
    voxel_channels: Count

    @model_validator(mode="after")
    def _divides(self) -> VoxelAttention:
        if self.channels % self.groups:
            raise ValueError(f"channels={self.channels} is no multiple of groups={self.groups}")
        return self


class Term(Built):
    """A term of the objective; see `distill.losses.objective.Term`. Arguments of a user's own are left to it."""

    weight: NotNegative


class LabelTerm(Known):
    """`distill.losses.supervised.LovaszSoftmax`, `.SemanticScal` and `.GeometricScal`."""

    weight: NotNegative
    mask: Mask
    classes: Built


class CrossEntropy(LabelTerm):
    """`distill.losses.supervised.CrossEntropy`."""

    balance: Balance


class FocalLoss(CrossEntropy):
    """`distill.losses.supervised.FocalLoss`."""

    gamma: NotNegative


class DecoupledCrossEntropy(CrossEntropy):
    """`distill.losses.supervised.DecoupledCrossEntropy`."""

    free_weight: NotNegative
    class_weight: NotNegative


class MultiScale(CrossEntropy):
    """`distill.losses.multi_scale.MultiScale`."""

    scales: Scales
    ce_weight: NotNegative
    lovasz_weight: NotNegative
    scal_weight: NotNegative
    channels: Count | None
    hidden_channels: Count
    grid: Built


class Proposals(LabelTerm):
    """`distill.losses.proposals.Proposals`."""

    free_weight: NotNegative
    occupied_weight: NotNegative
    decay: Positive


class ImageSemantics(LabelTerm):
    """`distill.losses.image_semantics.ImageSemantics`."""

    channels: Count | None
    hidden_channels: Count
    grid: Built


class FusedSegmentation(CrossEntropy):
    """`distill.losses.fusion.FusedSegmentation`."""

    teacher: Text


class LidarDepth(Known):
    """`distill.losses.supervised.LidarDepth` and `.LidarSILog`."""

    weight: NotNegative


class RayTerm(Known):
    """`distill.losses.rendering.RayEntropy` and `.RayDistortion`."""

    weight: NotNegative
    samples: Count
    far: Positive
    grid: Built
    classes: Built


class RayDepth(RayTerm):
    """`distill.losses.rendering.RayDepth`."""

    form: Literal["silog", "l1"]


class RaySemantics(RayTerm):
    """`distill.losses.rendering.RaySemantics`."""

    balance: Balance


class RegionTerm(Known):
    """`distill.losses.regions.RegionTerm`, as it stands `.jaccard.SoftJaccard` and `.affinity.PrototypeAffinity`."""

    weight: NotNegative
    teachers: list[Text] | None
    mask: TaughtMask
    unlabelled: Unlabelled
    classes: Built


class LogitsTerm(RegionTerm):
    """`distill.losses.logits.VoxelKL` and `.BevKL`."""

    temperature: Positive
    confidence: Confidence


class DecoupledVoxelKL(LogitsTerm):
    """`distill.losses.logits.DecoupledVoxelKL`."""

    free_weight: NotNegative
    class_weight: NotNegative


class ChannelwiseKL(RegionTerm):
    """`distill.losses.channelwise.ChannelwiseKL`."""

    temperature: Positive


class RayTerminationKL(RegionTerm):
    """`distill.losses.termination.RayTerminationKL`."""

    columns: Count


class FeatureDistillation(RegionTerm):
    """`distill.losses.features.FeatureDistillation`."""

    kind: Literal["mfd", "cosine", "kl"]
    published: bool
    foreground_share: Probability
    student_channels: Count
    teacher_channels: Count

    @model_validator(mode="after")
    def _is_kl(self) -> FeatureDistillation:
        if self.published and self.kind != "kl":
            raise ValueError(f"published=true is of kind=kl, not of kind={self.kind}")
        return self


class ImageFeatureCosine(Known):
    """`distill.losses.features.ImageFeatureCosine`."""

    weight: NotNegative
    teachers: list[Text] | None
    student_channels: Count
    hidden_channels: Count
    teacher_channels: Count


class TaughtProposals(RegionTerm):
    """`distill.losses.proposals.TaughtProposals`, which has to be told of free voxels, too."""

    mask: Mask
    free_weight: NotNegative
    occupied_weight: NotNegative
    decay: Positive


class BalancedVoxelKL(LogitsTerm):
    """`distill.losses.logits.BalancedVoxelKL`."""

    balance: Balance
    balance_by: BalanceBy
    occupied_share: Probability
    near: Positive | None


class PseudoTerm(RegionTerm):
    """`distill.losses.pseudo.PseudoLovasz`, `.PseudoSemanticScal` and `.PseudoGeometricScal`."""

    threshold: Threshold
    frames: TaughtFrames


class PseudoCrossEntropy(PseudoTerm):
    """`distill.losses.pseudo.PseudoCrossEntropy`."""

    balance: Balance
    confidence: Confidence


class Stored(Known):
    """`distill.teaching.stored.open_stored`."""

    paths: Annotated[list[Place], AfterValidator(_distinct)] | None
    folder: Place
    missing: Literal["error", "skip"]
    signals: Annotated[list[Text], AfterValidator(_distinct)] | None
    weight: NotNegative


class Ema(Known):
    """`distill.teaching.ema.Ema`."""

    frames: TaughtFrames
    measured_depth: bool
    momentum: Annotated[Number, Field(ge=0, lt=1)]
    warmup: CountOrNone
    milestones: Annotated[list[Count], AfterValidator(_rising)]
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


class Augmentation(Known):
    """`distill.augment.Augmentation`."""

    resize: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    image_flip: Probability
    colour: Annotated[Number, Field(ge=0, lt=1)]
    bev_flip: Probability


class View(Known):
    """`student.evaluation.tta.View`."""

    images: bool
    world: bool


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


class FlashOcc(Known):
    """`distill.networks.flashocc.network.FlashOcc`."""

    convention: Literal["own", "upstream"]
    encoder: Built
    lift: Built
    bev_encoder: Built
    head: Built


class FlashOccStereo(FlashOcc):
    """`distill.networks.flashocc.stereo_network.FlashOccStereo`."""

    align: Literal["after", "before"]


class FlashOccEncoder(Known):
    """`distill.networks.flashocc.encoder.ImageEncoder`."""

    weights: Annotated[str, AfterValidator(_weights)]
    channels: Count


class FlashOccLift(Known):
    """`distill.networks.flashocc.lift.Lift` and `.StereoLift`."""

    in_channels: Count
    channels: Count
    depth_range: Interval
    depth_bins: Annotated[int, Field(ge=2)]
    grid: Built


class FlashOccBEVEncoder(Known):
    """`distill.networks.flashocc.bev_encoder.BEVEncoder`."""

    in_channels: Count
    widths: Annotated[list[Count], Field(min_length=2)]
    out_channels: Count


class FlashOccHead(Known):
    """`distill.networks.flashocc.head.ChannelToHeight`."""

    in_channels: Count
    hidden_channels: Count
    grid: Built
    classes: Built


class GaussianFormerTeacher(Known):
    """`teacher_dump.teachers.gaussianformer.teacher.GaussianFormerTeacher`."""

    name: Name
    checkpoint: Place
    image_size: Size
    grid: Built
    seed: Seed
    network: Built


class Inputs(Node):
    """What a network is given; see `distill.nuscenes.frames.FrameDataset`."""

    image_size: Size
    lidar: bool
    history: CountOrNone
    bicubic: bool = False
    calibration: bool = False


class VoxelRule(Known):
    """`distill.point_sets.VoxelRule`."""

    reach: Positive
    threshold: Annotated[Number, Field(gt=0, lt=1)]
    most: Count
    power: Positive


class OPUS(Known):
    """`distill.networks.opus.OPUS`."""

    queries: Count
    samples: Count
    refined: Annotated[list[Count], Field(min_length=1)]
    history: CountOrNone
    backbone_weights: Annotated[str, AfterValidator(_weights)]
    rule: Built
    grid: Built
    classes: Built


class PointPlaces(Known):
    """`distill.losses.point_sets.PointPlaces`."""

    weight: NotNegative
    rare: Annotated[list[CountOrNone], AfterValidator(_distinct)]
    grid: Built
    classes: Built


class PointClasses(Known):
    """`distill.losses.point_sets.PointClasses`."""

    weight: NotNegative
    class_weights: list[NotNegative]
    grid: Built
    classes: Built


BUILT: dict[str, type[Known]] = {
    "distill.demo.WorldConfig": World,
    "distill.grids.named_grid": Grid,
    "distill.networks.blocks.encoder.ImageEncoder": Encoder,
    "distill.networks.lift.LiftSplat": Lift,
    "distill.networks.blocks.bev_encoder.BEVEncoder": BEVEncoder,
    "distill.networks.blocks.head.ChannelToHeight": Head,
    "distill.networks.temporal.PastFusion": PastFusion,
    "distill.networks.monoocc.stage.DepthHead": DepthHead,
    "distill.networks.monoocc.stage.ProposalStage": ProposalStage,
    "distill.networks.monoocc.proposals.QueryProposals": QueryProposals,
    "distill.networks.monoocc.views.CrossViewTransformer": CrossViewTransformer,
    "distill.networks.monoocc.attention.VoxelAttention": VoxelAttention,
    "distill.losses.proposals.Proposals": Proposals,
    "distill.losses.proposals.TaughtProposals": TaughtProposals,
    "distill.losses.supervised.CrossEntropy": CrossEntropy,
    "distill.losses.supervised.FocalLoss": FocalLoss,
    "distill.losses.supervised.DecoupledCrossEntropy": DecoupledCrossEntropy,
    "distill.losses.supervised.LovaszSoftmax": LabelTerm,
    "distill.losses.supervised.SemanticScal": LabelTerm,
    "distill.losses.supervised.GeometricScal": LabelTerm,
    "distill.losses.supervised.LidarDepth": LidarDepth,
    "distill.losses.supervised.LidarSILog": LidarDepth,
    "distill.losses.multi_scale.MultiScale": MultiScale,
    "distill.losses.image_semantics.ImageSemantics": ImageSemantics,
    "distill.losses.fusion.FusedSegmentation": FusedSegmentation,
    "distill.losses.rendering.RayDepth": RayDepth,
    "distill.losses.rendering.RaySemantics": RaySemantics,
    "distill.losses.rendering.RayEntropy": RayTerm,
    "distill.losses.rendering.RayDistortion": RayTerm,
    "distill.losses.logits.VoxelKL": LogitsTerm,
    "distill.losses.logits.BevKL": LogitsTerm,
    "distill.losses.logits.BalancedVoxelKL": BalancedVoxelKL,
    "distill.losses.logits.DecoupledVoxelKL": DecoupledVoxelKL,
    "distill.losses.channelwise.ChannelwiseKL": ChannelwiseKL,
    "distill.losses.affinity.PrototypeAffinity": RegionTerm,
    "distill.losses.termination.RayTerminationKL": RayTerminationKL,
    "distill.losses.features.FeatureDistillation": FeatureDistillation,
    "distill.losses.features.ImageFeatureCosine": ImageFeatureCosine,
    "distill.losses.pseudo.PseudoCrossEntropy": PseudoCrossEntropy,
    "distill.losses.pseudo.PseudoLovasz": PseudoTerm,
    "distill.losses.pseudo.PseudoSemanticScal": PseudoTerm,
    "distill.losses.pseudo.PseudoGeometricScal": PseudoTerm,
    "distill.losses.jaccard.SoftJaccard": RegionTerm,
    "distill.teaching.stored.open_stored": Stored,
    "distill.teaching.ema.Ema": Ema,
    "distill.teaching.branch.FusionBranch": FusionBranch,
    "distill.augment.Augmentation": Augmentation,
    "student.evaluation.tta.View": View,
    "teacher_dump.teachers.network.NetworkTeacher": NetworkTeacher,
    "teacher_dump.teachers.network.PublishedTeacher": PublishedTeacher,
    "distill.networks.flashocc.network.FlashOcc": FlashOcc,
    "distill.networks.flashocc.stereo_network.FlashOccStereo": FlashOccStereo,
    "distill.networks.flashocc.encoder.ImageEncoder": FlashOccEncoder,
    "distill.networks.flashocc.lift.Lift": FlashOccLift,
    "distill.networks.flashocc.lift.StereoLift": FlashOccLift,
    "distill.networks.flashocc.bev_encoder.BEVEncoder": FlashOccBEVEncoder,
    "distill.networks.flashocc.head.ChannelToHeight": FlashOccHead,
    "teacher_dump.teachers.gaussianformer.teacher.GaussianFormerTeacher": GaussianFormerTeacher,
    "distill.point_sets.VoxelRule": VoxelRule,
    "distill.networks.opus.OPUS": OPUS,
    "distill.losses.point_sets.PointPlaces": PointPlaces,
    "distill.losses.point_sets.PointClasses": PointClasses,
}


class Common(Node):
    """What all programs share."""

    cache_dir: Place
    grid: Built | None
    classes: Built | None


class Computing(Common):
    """What the programs share that run networks."""

    seed: Seed
    device: Device


class Data(Node):
    """Where the keyframes are, and what to do about those that are not whole."""

    name: Name
    root: Place
    version: Name
    surroundocc: Text | None
    labels: Built | None
    train_split: Split
    val_split: Split
    missing: Literal["error", "skip"]
    lidar_columns: Annotated[int, Field(ge=4, le=64)]
    cache_dir: Place
    world: Built | None


class DataOfCheckpoint(Node):
    """`Data`; null stands for what the checkpoint says."""

    name: Name | None
    root: Place | None
    version: Name | None
    surroundocc: Text | None
    labels: Built | None
    train_split: Split | None
    val_split: Split | None
    missing: Literal["error", "skip"] | None
    lidar_columns: Annotated[int, Field(ge=4, le=64)] | None
    cache_dir: Place
    world: Built | None


class Student(Node):
    """A network and its inputs."""

    name: Name
    inputs: Inputs
    network: Built


class RayDraw(Node):
    """`distill.nuscenes.rays.RayDraw`."""

    count: Count
    neighbours: CountOrNone
    neighbour_weight: Probability
    balance: Balance
    farthest: Positive


class Rendering(Node):
    """How rays are sampled, of all terms that render."""

    samples: Count
    far: Positive


class Objective(Node):
    """Which terms are minimised, beside those of `KD`."""

    mask: Mask
    rays: RayDraw | None = None
    rendering: Rendering | None = None
    terms: dict[str, Term]


class KD(Node):
    """How a student listens to its teachers."""

    name: Name
    warmup_steps: CountOrNone
    temperature: Positive | None = None
    confidence: Confidence | None = None
    mask: TaughtMask | None = None
    unlabelled: Unlabelled | None = None
    balance: Balance | None = None
    balance_by: BalanceBy | None = None
    occupied_share: Probability | None = None
    near: Positive | None = None
    threshold: Threshold | None = None
    frames: TaughtFrames | None = None
    terms: dict[str, Term]


class Withheld(Node):
    """`distill.nuscenes.withheld.Withheld`."""

    share: Annotated[Number, Field(gt=0, lt=1)]
    seed: Seed


class Trainer(Node):
    """How a network is trained."""

    init: Place | None
    epochs: Count
    batch_size: Count
    workers: CountOrNone
    learning_rate: NotNegative
    weight_decay: NotNegative
    warmup_steps: CountOrNone
    clip_norm: Positive
    precision: Literal["bf16", "fp16", "fp32"]
    ema_decay: Annotated[Number, Field(ge=0, lt=1)]
    checkpoint_every: Count
    max_samples: Count | None
    max_val_samples: Count | None
    withheld: Annotated[Withheld | None, BeforeValidator(_share_and_seed)]
    labelled_share: Annotated[Number, Field(gt=0, le=1)] | None
    gradient_norms_every: Count | None
    augmentation: Built | None


class Train(Computing):
    """occ-train-student."""

    data: Data
    student: Student
    kd: KD
    teachers: dict[str, Built]
    objective: Objective
    trainer: Trainer
    name: Name
    variant: str
    not_in_name: list[str]
    output: Place


class WriteStore(Node):
    """Where a dump goes, and how it keeps voxels."""

    path: Place
    encoding: Literal["auto", "columns", "levels", "fine"]
    step: Annotated[Number, Field(ge=1 / 16, le=1)]
    keep: Literal["all", "visible"]


class DumpSettings(Node):
    """What is dumped, and with how many hands."""

    splits: Splits
    max_samples: Count | None
    overwrite: bool
    signals: Annotated[list[Signal], Field(min_length=1), AfterValidator(_distinct)]
    verify: bool
    batch_size: Count
    workers: CountOrNone
    writers: Count


class GateSettings(Node):
    """When a teacher is too weak."""

    min_miou: Annotated[Number, Field(ge=0, le=100)]
    after: Count


class Teacher(Built):
    """A teacher; its arguments are its own."""

    name: Name


class Dump(Computing):
    """occ-dump."""

    data: Data
    teacher: Teacher
    store: WriteStore
    dump: DumpSettings
    gate: GateSettings


class TeacherOfCheckpoint(Node):
    """Where the stores of a teacher of the checkpoint are; null stands for what the checkpoint says."""

    paths: list[Place] | None


class MetricSettings(Node):
    """Edges and thresholds of the metrics."""

    distance_bands: Edges
    height_bands: Edges
    f_score_distance: Positive
    calibration_bins: Count


class CostSettings(Node):
    """How latency is measured."""

    warmup: CountOrNone
    runs: Count


class TTA(Node):
    """Mirrored views that are averaged."""

    views: list[Built]


class Eval(Computing):
    """occ-eval."""

    data: DataOfCheckpoint
    teachers: dict[str, TeacherOfCheckpoint]
    robustness: dict[str, Built]
    tta: TTA
    checkpoint: Place | None
    sources: list[Place]
    weights: Literal["ema", "raw"]
    split: Split | None
    max_samples: Count | None
    batch_size: Count
    workers: CountOrNone
    metrics: MetricSettings
    cost: CostSettings
    pictures: list[Text]
    export: Place | None
    output: Place | None


class PoolLabels(Common):
    """occ-pool-labels."""

    data: Data
    splits: Splits
    scales: Scales
    overwrite: bool
    threads: Count
    output: Place


class NewStore(Node):
    """What a store is made into."""

    path: Place | None
    encoding: Literal["same", "auto", "columns", "levels", "fine"]
    step: Annotated[Number, Field(ge=1 / 16, le=1)]
    keep: Literal["same", "visible"]


class Stores(Node):
    """occ-store."""

    cache_dir: Place
    data: Data | None
    do: Literal["info", "verify", "convert", "merge"]
    path: Annotated[list[Place], BeforeValidator(_one_or_several), Field(min_length=1), AfterValidator(_distinct)]
    discard: bool
    threads: Count
    store: NewStore


PROGRAMS: dict[str, type[Node]] = {
    "train": Train,
    "dump": Dump,
    "eval": Eval,
    "pool_labels": PoolLabels,
    "stores": Stores,
}


def checked(program: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration with absolute paths, and what is wrong with it, a line per value.

    Args:
        program: name of the YAML file.
        config: resolved; `MISSING` stands for what was not given.
    """
    problems = [f"{key} must be given: {key}=..." for key in _not_given(config)]
    if problems:
        return config, problems
    config = _check_built(_check_node(PROGRAMS[program], config, "", problems), "", problems)
    if not problems and "student" in config:
        student = config["student"]
        problems += [*_whole_cells(student), *_depth_of_proposals(student), *_something_to_minimise(config)]
    # the weight of a term is looked at as that of any term, and as its own
    return config, list(dict.fromkeys(problems))


def _whole_cells(student: dict[str, Any]) -> Iterator[str]:
    """What is wrong between the values of a student, each of which is right."""
    levels = student["network"].get("encoder", {}).get("levels", [])
    stride = max([2 ** (level + 1) for level in levels], default=1)
    size = student["inputs"]["image_size"]
    if any(side % stride for side in size):
        yield f"student.inputs.image_size={size}: should be multiples of {stride}, the stride of the network"


def _depth_of_proposals(student: dict[str, Any]) -> Iterator[str]:
    stage = student["network"].get("proposals")
    if isinstance(stage, dict) and stage.get("depth", MISSING) is None and not student["inputs"]["lidar"]:
        yield "student.network.proposals.depth=null: depth is that of the LiDAR, then: set student.inputs.lidar=true"


def _something_to_minimise(config: dict[str, Any]) -> Iterator[str]:
    supervised, distilled = config["objective"]["terms"], config["kd"]["terms"]
    twice = [name for name in supervised if name in distilled]
    if twice:
        yield f"objective.terms.{twice[0]}: kd={config['kd']['name']} has a term of this name, too: call it otherwise"
    if distilled and not any(term["weight"] for term in distilled.values()):
        yield f"kd={config['kd']['name']}: all weights are 0: kd=none trains without a teacher"
    elif not any(term["weight"] for term in [*supervised.values(), *distilled.values()]):
        yield f"objective.terms: all weights are 0, and kd={config['kd']['name']} adds none: there is nothing to learn"


def _not_given(node: Any, key: str = "") -> Iterator[str]:
    if node == MISSING:
        yield key
    for name, child in _children(node):
        yield from _not_given(child, f"{key}.{name}" if key else str(name))


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict | list):
        yield from node.items() if isinstance(node, dict) else enumerate(node)


def _check_node(kind: type[BaseModel], node: dict[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    try:
        return kind.model_validate(node).model_dump(by_alias=True, exclude_unset=True)
    except ValidationError as error:
        problems += dict.fromkeys(_problem(key, found) for found in error.errors())
        return node


def _check_built(node: Any, key: str, problems: list[str]) -> Any:
    """`node` with every object of this project below it checked, innermost first."""
    if not isinstance(node, dict | list):
        return node
    children = {
        name: _check_built(child, f"{key}.{name}" if key else str(name), problems) for name, child in _children(node)
    }
    if isinstance(node, list):
        return list(children.values())
    kind = BUILT.get(node.get("_target_", ""))
    return children if kind is None else _check_node(kind, children, key, problems)


def _problem(key: str, found: ErrorDetails) -> str:
    """One line about one value."""
    name = ".".join([key] * bool(key) + [str(part) for part in found["loc"]])
    if found["type"] == "extra_forbidden":
        return f"{name}: there is no such value"
    if found["type"] == "missing":
        return f"{name}: it must be given"
    said = found["msg"].removeprefix("Value error, ").replace("Input should", "should")
    said = said.replace("True, False", "true, false")
    if found["type"] in ("string_type", "string_pattern_mismatch"):
        said = _TEXTS.get(name.rpartition(".")[2], said if found["type"] == "string_type" else "should be a plain name")
    if found["type"] == "list_type" and isinstance(found["input"], str):
        said = f"should be a list: {name}=[{found['input']}]"
    if found["type"] == "model_type":
        said = "should be a group of values with a _target_, not one value"
    if found["input"] == "":
        said = "should not be empty"
    shown = "" if isinstance(found["input"], dict) else f"={found['input']}"
    if isinstance(found["input"], str) and found["type"] in ("int_type", "float_type", "bool_type"):
        shown = f'="{found["input"]}"'  # "3" is no number
    for python, yaml in (("=None", "=null"), ("=True", "=true"), ("=False", "=false")):
        shown = yaml if shown == python else shown
    return f"{name}{shown}: {said}"


_TEXTS = {
    "device": "should be auto, cpu, cuda (the first GPU) or cuda:N (GPU number N, from 0)",
    "weights": "must be given: none, or a local file (.pth or .safetensors) with weights of that timm model",
    "_target_": "should be a class or function with its module: package.module.Name",
}
