"""The occupancy network: its four parts in a row."""

from __future__ import annotations

from typing import Any

from torch import nn

from distill.network.bev_encoder import BEVEncoder
from distill.network.encoder import ImageEncoder
from distill.network.head import ChannelToHeight
from distill.prediction import Occupancy
from student.network.lift import LiftSplat


class OccupancyNetwork(nn.Module):
    """Camera images of one keyframe -> voxel logits, after FlashOcc (Yu et al. 2023; docs/formulas.md 5.3)."""

    def __init__(self, encoder: ImageEncoder, lift: LiftSplat, bev_encoder: BEVEncoder, head: ChannelToHeight) -> None:
        super().__init__()
        self.encoder = encoder
        self.lift = lift
        self.bev_encoder = bev_encoder
        self.head = head

    def forward(self, batch: dict[str, Any]) -> Occupancy:
        """Predict from `images` uint8 (B, N, 3, H, W), `intrinsics` (B, N, 3, 3) and `cam2ego` (B, N, 4, 4)."""
        feat_BNCHW = self.encoder(batch["images"])
        bev_BCXY, depth_BNDHW = self.lift(feat_BNCHW, self.encoder.stride, batch["intrinsics"], batch["cam2ego"])
        voxel_logits_BXYZC = self.head(self.bev_encoder(bev_BCXY))
        return Occupancy(voxel_logits_BXYZC, depth_BNDHW, self.lift.depth_range)
