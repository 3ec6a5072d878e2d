"""The classes that image features show, against voxel labels seen by the cameras (docs/formulas.md 4.21).

Letters: B batch, N cameras, M images, C channels or classes, H W image cells, X Y Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.classes import ClassSet
from distill.errors import InputError
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.losses.objective import Lesson, Term
from distill.losses.regions import labelled_mask, wide
from distill.networks.blocks.layers import conv_norm_act
from kernels.ray_cast import ray_cast

UNKNOWN = 255  # the label of cells of which nothing is known
_DECAY = 0.9  # from one level to the next, as published
_FAR = 16.0  # metres of depth that a ray is aimed at: float32 voxel coordinates keep its direction


class ImageSemantics(Term):
    """What a decoder of its own says of the image features, at half their stride, against what the cameras see.

    A cell is of the class of the first occupied voxel on the ray through its centre. It is unknown if that voxel is not
    in the mask, or there is none.

    Args:
        weight: of the term.
        channels: of the feature map "image"; None: the configuration does not tell.
        hidden_channels: of the decoder.
        mask: see `regions.labelled_mask`.
        grid: of the labels.
        classes: of the labels.

    Raises:
        InputError: `channels` is None.
    """

    def __init__(
        self, weight: float, channels: int | None, hidden_channels: int, mask: str, grid: VoxelGrid, classes: ClassSet
    ) -> None:
        super().__init__(weight)
        if channels is None:
            raise InputError(
                "objective.terms.image_semantics.channels must be given: those of the network's feature map image"
            )
        self.channels, self.mask, self.grid, self.classes = channels, mask, grid, classes
        # bilinear: transposed convolutions of kernel 1 leave most of the finer cells without any image
        self.decoder = nn.Sequential(
            conv_norm_act(channels, hidden_channels, 3),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(hidden_channels, len(classes), 1),
        )

    def forward(self, lesson: Lesson) -> Tensor:
        """The mean over the cells of which something is known.

        Raises:
            InputError: the network has no such features.
        """
        image, there = lesson.prediction.features.get("image"), ", ".join(lesson.prediction.features) or "none"
        if image is None or image.values.shape[2] != self.channels:
            found = f"{image.values.shape[2]} channels" if image else f"no such map ({there})"
            raise InputError(
                f"objective.terms.image_semantics wants a feature map image of {self.channels} channels, the network "
                f"has {found}: set its channels, or its weight to 0"
            )
        logits_MCHW = self.decoder(wide(image.values).flatten(0, 1))
        known_BXYZ = labelled_mask(lesson.frame, self.mask, self.classes)
        labels_BNHW = seen_labels(lesson.frame, known_BXYZ, self.grid, self.classes.free, logits_MCHW.shape[-2:])
        return pixel_cross_entropy([logits_MCHW], labels_BNHW.flatten(0, 1))


def seen_labels(frame: Frame, known_BXYZ: Tensor, grid: VoxelGrid, free: int, cells: Sequence[int]) -> Tensor:
    """The labels of the first occupied voxels on rays through the centres of image cells, int64 (B, N, H, W).

    Args:
        frame: the batch.
        known_BXYZ: bool; a label elsewhere hides what is behind it and is `UNKNOWN`, as where a ray meets none.
        grid: of the labels.
        free: id of the free class.
        cells: (H, W), over the whole images.
    """
    labels = []
    for semantics_XYZ, known_XYZ, (origin_R3, end_R3) in zip(
        frame.semantics, known_BXYZ, _rays(frame, grid, cells), strict=True
    ):
        end_SR, distance_SR = ray_cast((semantics_XYZ != free)[None], origin_R3, end_R3)
        label_R = semantics_XYZ.flatten()[end_SR[0].long()].long()
        there_R = known_XYZ.flatten()[end_SR[0].long()] & (label_R != free) & (distance_SR[0] >= 0)
        labels.append(label_R.where(there_R, UNKNOWN))
    return torch.stack(labels).view(*frame.cam2ego.shape[:2], *cells)


def _rays(frame: Frame, grid: VoxelGrid, cells: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Of each frame, where rays begin and another point of each, float32 (N * H * W, 3), voxels."""
    (height, width), (rows, columns) = frame.images.shape[-2:], cells
    device = frame.cam2ego.device
    v_H = (torch.arange(rows, device=device, dtype=torch.float64) + 0.5) * height / rows
    u_W = (torch.arange(columns, device=device, dtype=torch.float64) + 0.5) * width / columns
    v_HW, u_HW = torch.meshgrid(v_H, u_W, indexing="ij")
    pixel_HW3 = torch.stack([u_HW, v_HW, torch.ones_like(u_HW)], -1)
    cam2voxel_BN44 = torch.from_numpy(grid.to_voxels()).to(device) @ frame.cam2ego.double()
    pixel2ray_BN33 = cam2voxel_BN44[..., :3, :3] @ torch.linalg.inv(frame.intrinsics.double())
    origin_BNHW3 = cam2voxel_BN44[:, :, None, None, :3, 3].expand(-1, -1, rows, columns, -1)
    end_BNHW3 = origin_BNHW3 + _FAR * torch.einsum("bnij,hwj->bnhwi", pixel2ray_BN33, pixel_HW3)
    rays = (points.float().flatten(1, 3) for points in (origin_BNHW3, end_BNHW3))
    return list(zip(*rays, strict=True))


def pixel_cross_entropy(levels: Sequence[Tensor], labels_MHW: Tensor) -> Tensor:
    """MonoOcc's auxiliary 2-D cross-entropy: 0.9^i of the mean at level i, and half of the sum where there are several.

    Args:
        levels: logits (M, C, h, w) of each level, whose labels are the nearest.
        labels_MHW: int64 class ids, `UNKNOWN` where nothing is known.

    Returns:
        A scalar; 0 where nothing is known.
    """
    losses: list[Tensor] = []
    for logits_MCHW in levels:
        (rows, columns), (height, width) = logits_MCHW.shape[-2:], labels_MHW.shape[-2:]
        row_H = torch.arange(rows, device=labels_MHW.device) * height // rows
        column_W = torch.arange(columns, device=labels_MHW.device) * width // columns
        nearest_MHW = labels_MHW[:, row_H[:, None], column_W]
        total = F.cross_entropy(logits_MCHW, nearest_MHW, ignore_index=UNKNOWN, reduction="sum")
        losses.append(_DECAY ** len(losses) * total / (nearest_MHW != UNKNOWN).sum().clamp_min(1))
    return torch.stack(losses).sum() / min(len(losses), 2)
