"""The decoder of OPUS: queries look into the images and move their points, layer by layer (docs/formulas.md 10.3).

Letters: B batch, T frames, Q queries, R points of each, P samples of a query, group and frame, A groups of C channels,
D channels of a query, S outputs of a mixing, E heads, K all queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.opus.sampling import Sampling, Views
from distill.point_sets import PointSet

_CHANNELS, _GROUPS, _LEVELS, _HEADS = 256, 4, 4, 8
_MIXED, _HIDDEN, _DROPOUT = 32, 512, 0.1
_STEP = 0.5  # metres per unit of what moves points
_AT_ONCE = 1200  # queries; what is made for each of them, such as weights to mix with, is large


class Decoder(nn.Module):
    """Learned points, and layers that refine them.

    Args:
        queries: Q.
        samples: P.
        refined: R after each layer.
        frames: T.
        classes: that have scores.
        lower, size: minimum corner and extent of the grid, metres.
    """

    lower: Tensor
    size: Tensor

    def __init__(
        self,
        queries: int,
        samples: int,
        refined: Sequence[int],
        frames: int,
        classes: int,
        lower: Sequence[float],
        size: Sequence[float],
    ) -> None:
        super().__init__()
        self.init_points = nn.Parameter(torch.rand(queries, 3))
        before = [1, *refined[:-1]]
        self.layers = nn.ModuleList(
            DecoderLayer(samples, frames, points, after, classes) for points, after in zip(before, refined, strict=True)
        )
        self.register_buffer("lower", torch.tensor(lower), persistent=False)
        self.register_buffer("size", torch.tensor(size), persistent=False)

    def forward(self, views: Views) -> list[PointSet]:
        """The points that all begin with, without scores, and those of each layer."""
        batch, queries = len(views.ego2image_BTN44), len(self.init_points)
        units_BQR3 = self.init_points.expand(batch, -1, -1).unsqueeze(2)
        query_BQD = units_BQR3.new_zeros(batch, queries, _CHANNELS)
        sets = [PointSet(self._metres(units_BQR3), None)]
        for layer in self.layers:
            units_BQR3 = units_BQR3.detach()
            points_BQR3 = self._metres(units_BQR3)
            query_BQD, logits_BQRC, moved_BQR3 = layer(query_BQD, units_BQR3, points_BQR3, views)
            units_BQR3 = (points_BQR3.mean(2, keepdim=True) + moved_BQR3 - self.lower) / self.size
            sets.append(PointSet(self._metres(units_BQR3), logits_BQRC))
        return sets

    def _metres(self, units_BQR3: Tensor) -> Tensor:
        return units_BQR3 * self.size + self.lower


class DecoderLayer(nn.Module):
    """Sample, mix, attend to the other queries, and say scores and moves of points.

    Args:
        samples: P.
        frames: T.
        points: R of the points it is given.
        refined: R of those that it makes.
        classes: that have scores.
    """

    def __init__(self, samples: int, frames: int, points: int, refined: int, classes: int) -> None:
        super().__init__()
        self.refined = refined
        self.position_encoder = nn.Sequential(*_perceptron(3 * points), *_perceptron(_CHANNELS))
        self.sampling = Sampling(_CHANNELS, _GROUPS, _LEVELS, samples)
        self.mixing = AdaptiveMixing(frames * samples)
        self.self_attn = DistanceAttention()
        self.ffn = nn.Sequential(
            nn.Linear(_CHANNELS, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(_DROPOUT),
            nn.Linear(_HIDDEN, _CHANNELS),
            nn.Dropout(_DROPOUT),
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(_CHANNELS) for _ in range(3))
        scores = nn.Linear(_CHANNELS, refined * classes)
        nn.init.constant_(scores.bias, -math.log(99))  # 1 % each
        self.cls_branch = nn.Sequential(*_perceptron(_CHANNELS), *_perceptron(_CHANNELS), scores)
        self.reg_branch = nn.Sequential(
            nn.Linear(_CHANNELS, _CHANNELS),
            nn.ReLU(inplace=True),
            nn.Linear(_CHANNELS, _CHANNELS),
            nn.ReLU(inplace=True),
            nn.Linear(_CHANNELS, refined * 3),
        )

    def forward(
        self, query_BQD: Tensor, units_BQR3: Tensor, points_BQR3: Tensor, views: Views
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine queries.

        Args:
            query_BQD: the queries.
            units_BQR3: their points in units of the grid.
            points_BQR3: the same in metres.
            views: of the cameras.

        Returns:
            The queries, logits (B, Q, R, classes) and moves in metres (B, Q, R, 3) of their new points.
        """
        query_BQD = query_BQD + self.position_encoder(units_BQR3.flatten(2))
        sampled_BQAPC = self.sampling(query_BQD, points_BQR3, views)
        query_BQD = self.norm1(self.mixing(query_BQD, sampled_BQAPC))
        query_BQD = self.norm2(self.self_attn(query_BQD, points_BQR3.mean(2)))
        query_BQD = self.norm3(query_BQD + self.ffn(query_BQD))
        logits_BQRC = self.cls_branch(query_BQD).unflatten(2, (self.refined, -1))
        moved_BQR3 = _STEP * self.reg_branch(query_BQD).unflatten(2, (self.refined, 3))
        return query_BQD, logits_BQRC, moved_BQR3


class AdaptiveMixing(nn.Module):
    """Mixes channels, then samples, of what a query found by matrices that it says itself.

    Args:
        inputs: samples of a query and group in all frames.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.channels, self.inputs = _CHANNELS // _GROUPS, inputs
        per_group = self.channels**2 + _MIXED * inputs
        self.parameter_generator = nn.Linear(_CHANNELS, _GROUPS * per_group)
        nn.init.zeros_(self.parameter_generator.weight)
        self.out_proj = nn.Linear(_GROUPS * _MIXED * self.channels, _CHANNELS)

    def forward(self, query_BQD: Tensor, sampled_BQAPC: Tensor) -> Tensor:
        """The queries (B, Q, D) with what is mixed added; sampled (B, Q, A, T * P, C)."""
        pairs = zip(query_BQD.split(_AT_ONCE, 1), sampled_BQAPC.split(_AT_ONCE, 1), strict=True)
        return query_BQD + torch.cat([self._mixed(*pair) for pair in pairs], 1)

    def _mixed(self, query_BQD: Tensor, sampled_BQAPC: Tensor) -> Tensor:
        said_BQAX = self.parameter_generator(query_BQD).unflatten(2, (_GROUPS, -1))
        of_channels, of_samples = said_BQAX.split([self.channels**2, _MIXED * self.inputs], -1)
        mixed_BQAPC = _rectified(sampled_BQAPC @ of_channels.unflatten(3, (self.channels, self.channels)))
        mixed_BQASC = _rectified(of_samples.unflatten(3, (_MIXED, self.inputs)) @ mixed_BQAPC)
        return self.out_proj(mixed_BQASC.flatten(2))


class DistanceAttention(nn.Module):
    """Self-attention in which the far count less, each query and head saying by how much."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(_CHANNELS, _HEADS, dropout=_DROPOUT, batch_first=True)
        self.gen_tau = nn.Linear(_CHANNELS, _HEADS)
        self.dropout = nn.Dropout(_DROPOUT)
        nn.init.zeros_(self.gen_tau.weight)
        nn.init.uniform_(self.gen_tau.bias, 0.0, 2.0)

    def forward(self, query_BQD: Tensor, centre_BQ3: Tensor) -> Tensor:
        """The queries with what they attend to added; centres in metres."""
        weights = self.attention.in_proj_weight, self.attention.in_proj_bias
        query_BEQC, key_BEQC, value_BEQC = (
            part_BQD.unflatten(2, (_HEADS, -1)).transpose(1, 2)
            for part_BQD in F.linear(query_BQD, *weights).chunk(3, 2)
        )
        tau_BEQ1 = self.gen_tau(query_BQD).transpose(1, 2).unsqueeze(3)
        dropout = self.attention.dropout if self.training else 0.0
        attended = []
        for asking_BEQC, near_BQ3, slope_BEQ1 in zip(
            query_BEQC.split(_AT_ONCE, 2), centre_BQ3.split(_AT_ONCE, 1), tau_BEQ1.split(_AT_ONCE, 2), strict=True
        ):
            apart_BQK = torch.cdist(near_BQ3, centre_BQ3, compute_mode="donot_use_mm_for_euclid_dist")
            bias_BEQK = -apart_BQK.unsqueeze(1) * slope_BEQ1
            attended.append(F.scaled_dot_product_attention(asking_BEQC, key_BEQC, value_BEQC, bias_BEQK, dropout))
        attended_BQD = torch.cat(attended, 2).transpose(1, 2).flatten(2)
        return query_BQD + self.dropout(self.attention.out_proj(attended_BQD))


def _perceptron(inputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, _CHANNELS), nn.LayerNorm(_CHANNELS), nn.ReLU(inplace=True)]


def _rectified(mixed: Tensor) -> Tensor:
    """Normalised over the whole matrix, without weights, and without what is negative."""
    return F.layer_norm(mixed, mixed.shape[-2:]).relu()
