"""FlashOcc M0 and M1: four parts in a row. Letters as in `distill.networks.prediction`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.frame import Frame
from distill.networks.adapter import Adapter
from distill.networks.flashocc.bev_encoder import BEVEncoder
from distill.networks.flashocc.convention import convention_named
from distill.networks.flashocc.encoder import ImageEncoder, normalised
from distill.networks.flashocc.head import ChannelToHeight
from distill.networks.flashocc.lift import Lift, places
from distill.networks.flashocc.rig import Rig, rigs_of
from distill.networks.flashocc.weights import PUBLISHED
from distill.networks.lift import rays_through
from distill.networks.prediction import FeatureKind, FeatureMap, Occupancy


class FlashOcc(nn.Module):
    """Camera images of one keyframe -> voxel logits (Yu et al. 2023; docs/formulas.md 9.1).

    Args:
        convention: "own", or "upstream", what the authors' weights take for granted (`convention.Convention`).
        encoder, lift, bev_encoder, head: the parts.

    Raises:
        InputError: no such convention, or a grid that it does not go with.
    """

    def __init__(
        self, convention: str, encoder: ImageEncoder, lift: Lift, bev_encoder: BEVEncoder, head: ChannelToHeight
    ) -> None:
        super().__init__()
        self.convention = convention_named(convention, lift.grid)
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
        return FeatureKind(self.bev_encoder.out_channels, 1)

    def published(self) -> Adapter:
        """How the authors' files are read.

        Raises:
            InputError: the network is built to another convention, which would change what their weights say.
        """
        if self.convention != convention_named("upstream", self.lift.grid):
            raise InputError("upstream's weights want upstream's convention: set student.network.convention=upstream")
        return PUBLISHED

    def forward(self, frame: Frame) -> Occupancy:
        """Predict from `images` uint8 (B, N, 3, H, W) and `calibration`."""
        return self.predict([normalised(each.images, self.convention.bgr) for each in self.times(frame)], frame)

    def times(self, frame: Frame) -> list[Frame]:
        """The frames that are looked at, the present first."""
        return [frame]

    def predict(self, images: list[Tensor], frame: Frame) -> Occupancy:
        """Predict from the images of `times`, as the encoder reads them, float32 (B, N, 3, H, W), and calibration."""
        (images_BN3HW,) = images
        merged_MCHW = self.encoder(images_BN3HW.flatten(0, 1)).merged_MCHW
        image_BNCHW = merged_MCHW.unflatten(0, images_BN3HW.shape[:2])
        depth_BNDHW, context_BNCHW = self.lift.predict(image_BNCHW)
        bev_BCYX = self.lift.splat(depth_BNDHW, context_BNCHW, self.cells(frame))
        return self._answer(image_BNCHW, depth_BNDHW, self.bev_encoder(bev_BCYX))

    def cells(self, frame: Frame) -> Tensor:
        """The BEV cell of every bin of every image cell, int64 (B, N, D, H, W); -1 outside."""
        if self.convention.key is not None:  # upstream's roundings
            return self._cells(frame, rigs_of(frame, self.convention.key)[0])
        height, width = frame.images.shape[-2:]
        return self.cells_of(frame.intrinsics, frame.cam2ego, (height, width))

    def cells_of(self, intrinsics: Tensor, cam2ego: Tensor, image_size: tuple[int, int]) -> Tensor:
        """`cells` of cameras whose poses lead to the frame of the voxels.

        Args:
            intrinsics: (B, N, 3, 3) of the network's input images.
            cam2ego: (B, N, 4, 4).
            image_size: (H, W) of the images, pixels.
        """
        with torch.autocast(intrinsics.device.type, enabled=False):
            v_H, u_W = (places(size, self.encoder.stride, self.convention.corners) for size in image_size)
            rays_BNHW3, origin_BN3 = rays_through(u_W.to(intrinsics), v_H.to(intrinsics), intrinsics, cam2ego)
            depth_D111 = self.lift.depth_D.view(-1, 1, 1, 1)
            points = origin_BN3[:, :, None, None, None] + rays_BNHW3.unsqueeze(2) * depth_D111
            return self.lift.cells(points, self.convention.truncates)

    def _cells(self, frame: Frame, rig: Rig) -> Tensor:
        height, width = frame.images.shape[-2:]
        points = self.lift.points(rig, (height, width), self.encoder.stride, self.convention.corners)
        return self.lift.cells(points, self.convention.truncates)

    def _answer(self, image_BNCHW: Tensor, depth_BNDHW: Tensor, bev_BCYX: Tensor) -> Occupancy:
        features = {
            "image": FeatureMap(image_BNCHW, "image", self.encoder.stride),
            "bev": FeatureMap(bev_BCYX.transpose(2, 3), "grid", 1),
        }
        return Occupancy(self.head(bev_BCYX), features, self.lift.bins(depth_BNDHW, self.encoder.stride))
