"""Where a query looks in the images of all frames, and what it finds there (docs/formulas.md 10.2).

Letters: B batch, T frames, N cameras, L levels, Q queries, A groups of channels, P samples of a query, group and frame,
R points of a query, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.level_sampling import sample_levels

_NEAREST = 1e-5  # metres in front of a camera; what is nearer is not seen


class Views(NamedTuple):
    """What the cameras see in all frames.

    Attributes:
        maps: (B * T * N, H, W, C) of each level, float32.
        ego2image_BTN44: metres in the frame of the grid to pixels times depth, float32.
        image_size: rows and columns of the images those pixels belong to.
    """

    maps: list[Tensor]
    ego2image_BTN44: Tensor
    image_size: tuple[int, int]


class Sampling(nn.Module):
    """Samples around the points of each query, in each frame of the first camera that sees them.

    Args:
        channels: of a query and of the maps.
        groups: A.
        levels: L.
        samples: P.
    """

    def __init__(self, channels: int, groups: int, levels: int, samples: int) -> None:
        super().__init__()
        self.groups, self.levels, self.samples = groups, levels, samples
        self.sampling_offset = nn.Linear(channels, groups * samples * 3)
        self.scale_weights = nn.Linear(channels, groups * samples * levels)
        nn.init.zeros_(self.sampling_offset.weight)
        nn.init.uniform_(self.sampling_offset.bias, -0.5, 0.5)

    def forward(self, query_BQC: Tensor, points_BQR3: Tensor, views: Views) -> Tensor:
        """What each query finds, (B, Q, A, T * P, C / A)."""
        uv_BTQAP2, camera_BTQAP = project(self.places(query_BQC, points_BQR3), views)
        batch, frames, queries = uv_BTQAP2.shape[:3]
        frame_BT = torch.arange(batch * frames, device=query_BQC.device).view(batch, frames)
        image_BTQAP = frame_BT[:, :, None, None, None] * views.ego2image_BTN44.shape[2] + camera_BTQAP
        weights_BTQAPL = self.level_weights(query_BQC, frames)
        sampled_AMC = sample_levels(
            views.maps,
            image_BTQAP.movedim(3, 0).flatten(1),
            uv_BTQAP2.movedim(3, 0).flatten(1, 4),
            weights_BTQAPL.movedim(3, 0).flatten(1, 4),
        )
        sampled_ABTQPC = sampled_AMC.unflatten(1, (batch, frames, queries, self.samples))
        return sampled_ABTQPC.permute(1, 3, 0, 2, 4, 5).flatten(3, 4)

    def places(self, query_BQC: Tensor, points_BQR3: Tensor) -> Tensor:
        """Where each query samples, metres (B, Q, A, P, 3): in units of the spread of its points around their mean."""
        offset_BQAP3 = self.sampling_offset(query_BQC).unflatten(2, (self.groups, self.samples, 3))
        centre_BQ3 = points_BQR3.mean(2)
        spread_BQ3 = points_BQR3.std(2) if points_BQR3.shape[2] > 1 else torch.zeros_like(centre_BQ3)
        return centre_BQ3[:, :, None, None] + offset_BQAP3 * spread_BQ3[:, :, None, None]

    def level_weights(self, query_BQC: Tensor, frames: int) -> Tensor:
        """Weights of the levels for each sample, (B, T, Q, A, P, L).

        In frame t, group a takes those of group (t A + a) // T, as upstream's published weights were trained.
        """
        logits_BQAPL = self.scale_weights(query_BQC).unflatten(2, (self.groups, self.samples, self.levels))
        rows_TA = torch.arange(frames * self.groups, device=query_BQC.device).view(frames, self.groups)
        return logits_BQAPL.softmax(-1)[:, :, rows_TA // frames].permute(0, 2, 1, 3, 4, 5)


def project(places_BQAP3: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """Where places appear in each frame, and in which camera, the first that sees them; one that none sees in camera 0.

    Returns:
        Column and row as fractions of the width and height of the image (B, T, Q, A, P, 2), and cameras, int64
        (B, T, Q, A, P).
    """
    matrix_BTN34 = views.ego2image_BTN44[:, :, :, :3]
    turned_BTNQAP3 = torch.einsum("btnij,bqapj->btnqapi", matrix_BTN34[..., :3], places_BQAP3)
    pixels_BTNQAP3 = turned_BTNQAP3 + matrix_BTN34[:, :, :, None, None, None, :, 3]
    depth_BTNQAP = pixels_BTNQAP3[..., 2]
    height, width = views.image_size
    uv_BTNQAP2 = pixels_BTNQAP3[..., :2] / depth_BTNQAP.clamp(min=_NEAREST).unsqueeze(-1)
    uv_BTNQAP2 = uv_BTNQAP2 / uv_BTNQAP2.new_tensor([width, height])
    seen_BTNQAP = (depth_BTNQAP > _NEAREST) & ((uv_BTNQAP2 > 0) & (uv_BTNQAP2 < 1)).all(-1)
    camera_BTQAP = seen_BTNQAP.int().argmax(2)  # the first maximum
    index_BT1QAP2 = camera_BTQAP.unsqueeze(2).unsqueeze(-1).expand(-1, -1, -1, -1, -1, -1, 2)
    return uv_BTNQAP2.gather(2, index_BT1QAP2).squeeze(2), camera_BTQAP
