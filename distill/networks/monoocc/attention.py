"""Stage 2: proposed voxels look at the images, the others share what one token says (docs/formulas.md 11.5).

Letters: B batch, N cameras, C channels, H W image cells, X Y Z voxel axes, G proposed voxels, P key points, A groups of
channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.grids import VoxelGrid
from kernels.deformable_aggregation import deformable_aggregation

NEAR = 0.1  # a key point closer to the image plane than this, metres, counts as behind the camera


class Cameras(NamedTuple):
    """What is looked at: all cameras of a batch of frames, those of the past among them.

    Attributes:
        image: features (B, N, C, H, W).
        intrinsics: (B, N, 3, 3) of the images.
        cam2ego: (B, N, 4, 4) to the ego frame of the present.
    """

    image: Tensor
    intrinsics: Tensor
    cam2ego: Tensor


class VoxelAttention(nn.Module):
    """Image features -> features of coarser voxels.

    A proposed voxel asks by where it is; layer by layer it adds what deformable attention brings it.

    Args:
        in_channels: channels of the image features.
        channels: of a query.
        layers: how often it looks.
        key_points: at which it looks in one layer.
        groups: of its channels, with weights of their own for what they take.
        voxel_channels: of the result.
        grid: of the coarser voxels.
    """

    centres_XYZ3: Tensor

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        key_points: int,
        groups: int,
        voxel_channels: int,
        grid: VoxelGrid,
    ) -> None:
        super().__init__()
        self.out_channels = voxel_channels
        self.places = nn.ModuleList(nn.Embedding(count, channels) for count in grid.shape)
        self.layers = nn.ModuleList(
            AttentionLayer(in_channels, channels, key_points, groups, grid.voxel_size) for _ in range(layers)
        )
        self.out = nn.Linear(channels, voxel_channels)
        self.mask_token = nn.Parameter(torch.randn(voxel_channels))
        self.register_buffer("centres_XYZ3", torch.from_numpy(grid.centres()).float(), persistent=False)

    def forward(self, cameras: Cameras, image_size: tuple[int, int], proposals_BXYZ: Tensor) -> Tensor:
        """The features of all voxels (B, X, Y, Z, C) by what cameras see; bool says which ones look."""
        voxels = []
        ego2cam_BN44 = torch.linalg.inv_ex(cameras.cam2ego.float()).inverse
        of_frames = zip(cameras.image, cameras.intrinsics.float(), ego2cam_BN44, proposals_BXYZ, strict=True)
        for image_NCHW, K, ego2cam, proposals_XYZ in of_frames:
            place_G3 = proposals_XYZ.nonzero()
            query_GC = sum(place(place_G3[:, axis]) for axis, place in enumerate(self.places))
            centre_G3 = self.centres_XYZ3[proposals_XYZ]
            for layer in self.layers:
                query_GC = layer(query_GC, centre_G3, image_NCHW, K, ego2cam, image_size)
            voxels.append(self.out(query_GC))
        return seeded(torch.cat(voxels), proposals_BXYZ, self.mask_token)


class AttentionLayer(nn.Module):
    """Key points around a voxel are seen by the cameras, and what they see is weighed and added.

    Args:
        in_channels, channels, key_points, groups: see `VoxelAttention`.
        reach: edge of the cube around the centre in which key points lie at first, metres.
    """

    def __init__(self, in_channels: int, channels: int, key_points: int, groups: int, reach: float) -> None:
        super().__init__()
        self.key_points, self.groups = key_points, groups
        self.value = nn.Conv2d(in_channels, channels, 1)
        self.offsets = nn.Linear(channels, 3 * key_points)
        self.scores = nn.Linear(channels, groups * key_points)
        self.merge = nn.Linear(channels, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
        # at first the same points of every voxel, all alike
        nn.init.zeros_(self.offsets.weight)
        nn.init.uniform_(self.offsets.bias, -reach / 2, reach / 2)
        nn.init.zeros_(self.scores.weight)
        nn.init.zeros_(self.scores.bias)

    def forward(
        self,
        query_GC: Tensor,
        centre_G3: Tensor,
        image_NCHW: Tensor,
        intrinsics_N33: Tensor,
        ego2cam_N44: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """The queries after a look at the images of one frame."""
        value_NCHW = self.value(image_NCHW)
        offsets_GP3 = self.offsets(query_GC).unflatten(1, (self.key_points, 3))
        scores_GPA = self.scores(query_GC).unflatten(1, (self.key_points, self.groups))
        with torch.autocast(query_GC.device.type, enabled=False):
            points_GP3 = centre_G3.unsqueeze(1) + offsets_GP3.float()
            uv_GPN2, seen_GPN = project(points_GP3, intrinsics_N33, ego2cam_N44, image_size)
            weights_GPNA = shares(scores_GPA.float(), seen_GPN)
            taken_GC = deformable_aggregation([value_NCHW.float()], uv_GPN2, weights_GPNA.unsqueeze(3))
        query_GC = self.norm1(query_GC + self.merge(taken_GC))
        return self.norm2(query_GC + self.mlp(query_GC))


def project(
    points_GP3: Tensor, intrinsics_N33: Tensor, ego2cam_N44: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Where points lie in the images of all cameras, as fractions of width and height, (G, P, N, 2); and in which they
    do, bool (G, P, N)."""
    camera_GPN3 = torch.einsum("nij,gpj->gpni", ego2cam_N44[:, :3, :3], points_GP3) + ego2cam_N44[:, :3, 3]
    u, v, depth = torch.einsum("nij,gpnj->gpni", intrinsics_N33, camera_GPN3).unbind(-1)
    height, width = image_size
    uv_GPN2 = torch.stack([u / width, v / height], -1) / depth.clamp(min=NEAR).unsqueeze(-1)
    seen_GPN = (depth > NEAR) & (uv_GPN2 > 0).all(-1) & (uv_GPN2 < 1).all(-1)
    # beside the images nothing is sampled
    return torch.where(seen_GPN.unsqueeze(-1), uv_GPN2, -1.0), seen_GPN


def shares(scores_GPA: Tensor, seen_GPN: Tensor) -> Tensor:
    """Softmax over all key points and the cameras that see them, (G, P, N, A); zeros where none is seen."""
    seen_GPN1 = seen_GPN.unsqueeze(-1)
    scale_GPN1A = (scores_GPA - scores_GPA.amax(1, keepdim=True)).exp().unsqueeze(2) * seen_GPN1
    total_G11A = scale_GPN1A.sum((1, 2), keepdim=True)
    return scale_GPN1A / total_G11A.clamp_min(torch.finfo(total_G11A.dtype).tiny)


def seeded(voxels_GC: Tensor, proposals_BXYZ: Tensor, token_C: Tensor) -> Tensor:
    """Features of proposed voxels, in the order of their flat positions, in a volume of tokens, (B, X, Y, Z, C)."""
    everywhere_BXYZC = token_C.to(voxels_GC.dtype).expand(*proposals_BXYZ.shape, -1)
    return everywhere_BXYZC.masked_scatter(proposals_BXYZ.unsqueeze(-1), voxels_GC)
