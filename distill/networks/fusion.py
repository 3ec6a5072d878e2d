"""Fusion: a LiDAR + camera occupancy network, small enough to be trained on a CPU and shipped as the demo's teacher.

Image features are painted onto the LiDAR points (PointPainting, Vora et al. 2020), the painted points encoded and
pooled into flat voxels (PointPillars, Lang et al. 2019), and a BEV network completes the scene.

Letters: B batch, N cameras, C channels, H W image cells, P points of the whole batch, S height slices, X Y BEV.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.networks.blocks.bev_encoder import BEVEncoder
from distill.networks.blocks.encoder import ImageEncoder
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.prediction import FeatureKind, FeatureMap, Occupancy

NEAR = 0.1  # a point closer to the image plane than this, metres, counts as behind the camera


class FusionNetwork(nn.Module):
    """Camera images and LiDAR points of one keyframe -> voxel logits.

    Args:
        encoder: makes the image features that are painted onto the points.
        point_encoder: painted points -> BEV features.
        bev_encoder: makes the BEV encoder for so many `in_channels`.
        head: makes the head for so many `in_channels`.
    """

    depth_stride = None

    def __init__(
        self,
        encoder: ImageEncoder,
        point_encoder: PointEncoder,
        bev_encoder: Callable[..., BEVEncoder],
        head: Callable[..., ChannelToHeight],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.point_encoder = point_encoder
        self.bev_encoder = bev_encoder(in_channels=point_encoder.out_channels)
        self.head = head(in_channels=self.bev_encoder.out_channels)

    @property
    def bev_features(self) -> FeatureKind:
        """Of the map "bev"."""
        return FeatureKind(self.bev_encoder.out_channels, self.head.bev_stride)

    def forward(self, frame: Frame) -> Occupancy:
        """Predict from `images`, `intrinsics`, `cam2ego` and `points`, B tensors (P_b, 4) in the ego frame."""
        points = frame.points
        feat_BNCHW = self.encoder(frame.images)
        ego2cam = torch.linalg.inv_ex(frame.cam2ego.float()).inverse
        size = frame.images.shape[-2:]
        painted_PC = torch.cat(
            [
                paint(xyzi[:, :3], feat_NCHW, K, pose, size)
                for xyzi, feat_NCHW, K, pose in zip(points, feat_BNCHW, frame.intrinsics, ego2cam, strict=True)
            ]
        )
        sample_P = torch.cat([torch.full_like(xyzi[:, 0], b, dtype=torch.int64) for b, xyzi in enumerate(points)])
        bev_BCXY = self.point_encoder(torch.cat(points), painted_PC, sample_P, len(points))
        bev_BCXY = self.bev_encoder(bev_BCXY)
        features = {
            "image": FeatureMap(feat_BNCHW, "image", self.encoder.stride),
            "bev": FeatureMap(bev_BCXY, "grid", self.head.bev_stride),
        }
        return Occupancy(self.head(bev_BCXY), features)


def paint(
    xyz_P3: Tensor, feat_NCHW: Tensor, intrinsics_N33: Tensor, ego2cam_N44: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """Image features at the points, averaged over the cameras that see them.

    Returns:
        float32 (P, C + 1): the features, and 1 where any camera sees the point; a row of zeros where none does.
    """
    with torch.autocast(xyz_P3.device.type, enabled=False):
        camera_NP3 = xyz_P3 @ ego2cam_N44[:, :3, :3].mT + ego2cam_N44[:, None, :3, 3]
        u, v, depth = (camera_NP3 @ intrinsics_N33.mT).unbind(-1)
        height, width = image_size
        # grid_sample without align_corners puts -1 and 1 at the outer edges of the map, as our pixel coordinates do
        xy_NP2 = torch.stack([u / width, v / height], -1) / depth.clamp(min=NEAR).unsqueeze(-1) * 2 - 1
        seen_NP = (depth > NEAR) & (xy_NP2.abs() < 1).all(-1)
        # a camera samples only what it sees: most points are seen by one camera of six
        painted_PC = feat_NCHW.new_zeros(len(xyz_P3), feat_NCHW.shape[1], dtype=torch.float32)
        for feat_CHW, xy_P2, seen_P in zip(feat_NCHW.float(), xy_NP2, seen_NP, strict=True):
            index = seen_P.nonzero().squeeze(1)
            sampled_CP = F.grid_sample(feat_CHW[None], xy_P2[index][None, None], align_corners=False)[0, :, 0]
            painted_PC = painted_PC.index_add(0, index, sampled_CP.T)
        cameras_P1 = seen_NP.sum(0).unsqueeze(1)
        return torch.cat([painted_PC / cameras_P1.clamp(min=1), (cameras_P1 > 0).float()], 1)


class PointEncoder(nn.Module):
    """Painted points -> BEV features: a small network per point, then the maximum over each flat voxel.

    Beside the pooled features, the BEV carries one occupancy channel per voxel of the column. A maximum does not depend
    on the order of arrival, so the result repeats exactly on every device.

    Args:
        image_channels: channels of the image features; None: points come unpainted.
        hidden_channels: channels of the point network.
        channels: features per flat voxel.
        slices: flat voxels per column.
        grid: the voxels; points outside are dropped.

    Attributes:
        out_channels: channels of the BEV features.
    """

    lower_3: Tensor
    shape_3: Tensor

    def __init__(
        self, image_channels: int | None, hidden_channels: int, channels: int, slices: int, grid: VoxelGrid
    ) -> None:
        super().__init__()
        self.shape, self.slices, self.channels = grid.shape, slices, channels
        self.out_channels = slices * channels + grid.shape[2]
        # offset in the voxel (3), place in the grid (3), intensity (1), image features and whether there are any
        painted = 0 if image_channels is None else image_channels + 1
        self.mlp = nn.Sequential(
            nn.Linear(7 + painted, hidden_channels, bias=False),
            nn.LayerNorm(hidden_channels),
            nn.ReLU(),
            nn.Linear(hidden_channels, channels),
            nn.ReLU(),
        )
        self.register_buffer("lower_3", torch.tensor(grid.lower), persistent=False)
        self.register_buffer("shape_3", torch.tensor(grid.shape, dtype=torch.float32), persistent=False)
        self.voxel_size = grid.voxel_size

    def forward(self, points_P4: Tensor, painted_PC: Tensor | None, sample_P: Tensor, batch: int) -> Tensor:
        """(B, out_channels, X, Y), float32; `sample_P` says to which of `batch` samples a point belongs."""
        place_P3 = (points_P4[:, :3] - self.lower_3) / self.voxel_size
        inside = ((place_P3 >= 0) & (place_P3 < self.shape_3)).all(1).nonzero().squeeze(1)
        place_P3, voxel_P3 = place_P3[inside], place_P3[inside].floor()
        x, y, z = voxel_P3.long().unbind(1)
        size_x, size_y, size_z = self.shape
        column_P = (sample_P[inside] * size_x + x) * size_y + y
        columns = batch * size_x * size_y

        features = [place_P3 - voxel_P3 - 0.5, place_P3 / self.shape_3 - 0.5, points_P4[inside, 3:]]
        features += [] if painted_PC is None else [painted_PC[inside]]
        encoded_PC = self.mlp(torch.cat(features, 1)).float()
        slice_P1 = (column_P * self.slices + z * self.slices // size_z).unsqueeze(1)
        pooled = encoded_PC.new_zeros(columns * self.slices, self.channels).scatter_reduce(
            0, slice_P1.expand_as(encoded_PC), encoded_PC, "amax"
        )
        occupied = encoded_PC.new_zeros(columns * size_z)
        occupied[column_P * size_z + z] = 1.0
        bev_BXYC = torch.cat([pooled.view(batch, size_x, size_y, -1), occupied.view(batch, size_x, size_y, -1)], -1)
        return bev_BXYC.permute(0, 3, 1, 2)
