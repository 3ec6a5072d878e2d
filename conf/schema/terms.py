"""What the values of the terms of the objective may be: labels, rays, and what listens to teachers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from conf.schema.values import (
    Balance,
    BalanceBy,
    Built,
    Confidence,
    Count,
    CountOrNone,
    Known,
    Mask,
    NotNegative,
    Positive,
    Probability,
    Scales,
    TaughtFrames,
    TaughtMask,
    Text,
    Threshold,
    Unlabelled,
    distinct,
)


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


class PointPlaces(Known):
    """`distill.losses.point_sets.PointPlaces`."""

    weight: NotNegative
    rare: Annotated[list[CountOrNone], AfterValidator(distinct)]
    grid: Built
    classes: Built


class PointClasses(Known):
    """`distill.losses.point_sets.PointClasses`."""

    weight: NotNegative
    class_weights: list[NotNegative]
    grid: Built
    classes: Built


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


class BalancedVoxelKL(LogitsTerm):
    """`distill.losses.logits.BalancedVoxelKL`."""

    balance: Balance
    balance_by: BalanceBy
    occupied_share: Probability
    near: Positive | None


class ChannelwiseKL(RegionTerm):
    """`distill.losses.channelwise.ChannelwiseKL`."""

    temperature: Positive


class RayTerminationKL(RegionTerm):
    """`distill.losses.termination.RayTerminationKL`."""

    columns: Count


class FeatureDistillation(RegionTerm):
    """`distill.losses.features.FeatureDistillation` and `.VoxelFeatureDistillation`."""

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


class PseudoTerm(RegionTerm):
    """`distill.losses.pseudo.PseudoLovasz`, `.PseudoSemanticScal` and `.PseudoGeometricScal`."""

    threshold: Threshold
    frames: TaughtFrames


class PseudoCrossEntropy(PseudoTerm):
    """`distill.losses.pseudo.PseudoCrossEntropy`."""

    balance: Balance
    confidence: Confidence


BUILT: dict[str, type[Known]] = {
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
    "distill.losses.features.VoxelFeatureDistillation": FeatureDistillation,
    "distill.losses.features.ImageFeatureCosine": ImageFeatureCosine,
    "distill.losses.pseudo.PseudoCrossEntropy": PseudoCrossEntropy,
    "distill.losses.pseudo.PseudoLovasz": PseudoTerm,
    "distill.losses.pseudo.PseudoSemanticScal": PseudoTerm,
    "distill.losses.pseudo.PseudoGeometricScal": PseudoTerm,
    "distill.losses.jaccard.SoftJaccard": RegionTerm,
    "distill.losses.point_sets.PointPlaces": PointPlaces,
    "distill.losses.point_sets.PointClasses": PointClasses,
}
