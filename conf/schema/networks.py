"""What the values of networks and of their inputs may be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from conf.schema.values import (
    Built,
    Count,
    CountOrNone,
    FileOrNone,
    Interval,
    Known,
    Node,
    Number,
    Positive,
    Size,
    Text,
    Weights,
    rising,
)


def _looks_back(history: int) -> int:
    if history < 1:
        raise ValueError("a network that looks back has a past to look at: set student.inputs.history=1, or more")
    return history


class Inputs(Node):
    """What a network is given; see `distill.nuscenes.frames.FrameDataset`."""

    image_size: Size
    lidar: bool
    history: CountOrNone
    bicubic: bool = False
    calibration: bool = False


class Encoder(Known):
    """`distill.networks.blocks.encoder.ImageEncoder`."""

    name: Text
    weights: Weights
    levels: Annotated[list[CountOrNone], Field(min_length=1), AfterValidator(rising)]
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

    weights: Weights
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
    backbone_weights: Weights
    rule: Built
    grid: Built
    classes: Built


BUILT: dict[str, type[Known]] = {
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
    "distill.networks.flashocc.network.FlashOcc": FlashOcc,
    "distill.networks.flashocc.stereo_network.FlashOccStereo": FlashOccStereo,
    "distill.networks.flashocc.encoder.ImageEncoder": FlashOccEncoder,
    "distill.networks.flashocc.lift.Lift": FlashOccLift,
    "distill.networks.flashocc.lift.StereoLift": FlashOccLift,
    "distill.networks.flashocc.bev_encoder.BEVEncoder": FlashOccBEVEncoder,
    "distill.networks.flashocc.head.ChannelToHeight": FlashOccHead,
    "distill.point_sets.VoxelRule": VoxelRule,
    "distill.networks.opus.OPUS": OPUS,
}
