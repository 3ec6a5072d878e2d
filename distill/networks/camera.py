"""The occupancy network: its four parts in a row."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from distill.frame import Frame
from distill.networks.blocks.bev_encoder import BEVEncoder
from distill.networks.blocks.encoder import ImageEncoder
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.lift import LiftSplat
from distill.networks.prediction import DepthBins, FeatureKind, FeatureMap, Occupancy


class Lifted(NamedTuple):
    """What the network sees in the images of one keyframe, before it makes anything of it.

    Attributes:
        image_BNCHW: image features.
        bev_BCXY: float32, what was lifted of them.
        depth_BNDHW: logits of the depth bins.
    """

    image_BNCHW: Tensor
    bev_BCXY: Tensor
    depth_BNDHW: Tensor


class CameraNetwork(nn.Module):
    """Camera images of one keyframe -> voxel logits, after FlashOcc (Yu et al. 2023; docs/formulas.md 5.3)."""

    def __init__(self, encoder: ImageEncoder, lift: LiftSplat, bev_encoder: BEVEncoder, head: ChannelToHeight) -> None:
        super().__init__()
        self.encoder = encoder
        self.lift = lift
        self.bev_encoder = bev_encoder
        self.head = head

    @property
    def depth_stride(self) -> int:
        """That of the encoder: every cell of the images is lifted."""
        return self.encoder.stride

    @property
    def bev_features(self) -> FeatureKind:
        """Of the map "bev"."""
        return FeatureKind(self.bev_encoder.out_channels, self.head.bev_stride)

    def forward(self, frame: Frame) -> Occupancy:
        """Predict from `images` uint8 (B, N, 3, H, W), `intrinsics` (B, N, 3, 3) and `cam2ego` (B, N, 4, 4)."""
        return self.answer(self.lifted(frame, None))

    def with_measured_depth(self, frame: Frame) -> Occupancy:
        """The same with `depth` (B, N, H / stride, W / stride) in the lift; see `network.LiftsMeasuredDepth`."""
        return self.answer(self.lifted(frame, frame.depth))

    def lifted(self, frame: Frame, measured_BNHW: Tensor | None) -> Lifted:
        """Encoder and lift; `measured_BNHW` as in `LiftSplat.forward`."""
        image_BNCHW = self.encoder(frame.images)
        lift = self.lift(image_BNCHW, self.encoder.stride, frame.intrinsics, frame.cam2ego, measured_BNHW)
        return Lifted(image_BNCHW, *lift)

    def answer(self, seen: Lifted) -> Occupancy:
        """BEV encoder and head."""
        bev_BCXY, stride = self.bev_encoder(seen.bev_BCXY), self.encoder.stride
        features = {
            "image": FeatureMap(seen.image_BNCHW, "image", stride),
            "bev": FeatureMap(bev_BCXY, "grid", self.head.bev_stride),
        }
        return Occupancy(self.head(bev_BCXY), features, DepthBins(seen.depth_BNDHW, *self.lift.depth_range, stride))
