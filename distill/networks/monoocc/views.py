"""Neighbouring views look at each other: MonoOcc's cross-view transformer (docs/formulas.md 11.4).

GMFlow's (Xu et al. 2022) shifted-window attention between two images. Modules are called as upstream calls them.

Letters: B batch, N views, C channels, H W image cells, M windows, T cells of a window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.networks.monoocc.weights import VIEWS

SPLITS = 2  # windows along each side of a map
EXPANSION = 4  # of the hidden layer over what goes into it
APART = -100.0  # added to the score of cells that only rolling made neighbours


class CrossViewTransformer(nn.Module):
    """Image features of all views -> the same, each changed by those beside it.

    Pair after pair is worked on in place, so that what a view has learnt travels on.

    Args:
        channels: of the features; a multiple of 4.
        layers: of each pair, each a self- and a cross-attention.
        around: whether views are taken in the order of their directions, and the last one meets the first; else, as
            upstream does, each meets the next as they come, of which with nuScenes' customary order 3 of 5 pairs are no
            neighbours.
        weights: which ones training begins with: "none", or a file of upstream's.

    Raises:
        InputError: `channels` is no multiple of 4.
    """

    def __init__(self, channels: int, layers: int, around: bool, weights: str) -> None:
        super().__init__()
        if channels % 4:
            raise InputError(f"views.channels={channels}: sine and cosine of two axes want a multiple of 4")
        self.around, self.weights = around, weights
        self.layers = nn.ModuleList(ViewLayer(channels) for _ in range(layers))

    def load_pretrained(self) -> None:
        """Replace the random weights by those of the file, if there is one.

        Raises:
            InputError: it is missing, or of another network.
        """
        if self.weights != "none":
            VIEWS.load(self, resolve(self.weights))

    def forward(self, features_BNCHW: Tensor, cam2ego_BN44: Tensor) -> Tensor:
        """The features of views with these poses, of even H and W.

        Raises:
            InputError: H or W is odd.
        """
        height, width = features_BNCHW.shape[-2:]
        if height % SPLITS or width % SPLITS:
            raise InputError(
                f"the cross-view transformer halves image features, which have {height} x {width} cells: let the sides "
                "of student.inputs.image_size be even multiples of the encoder's stride"
            )
        if not self.around:
            return self._along(features_BNCHW, closed=False)
        order_BN = around_the_car(cam2ego_BN44)
        frame_B1 = torch.arange(len(order_BN), device=order_BN.device).unsqueeze(1)
        ordered = self._along(features_BNCHW[frame_B1, order_BN], closed=order_BN.shape[1] > 2)
        return ordered[frame_B1, order_BN.argsort(1)]

    def _along(self, features_BNCHW: Tensor, closed: bool) -> Tensor:
        views = [*features_BNCHW.unbind(1)]
        position_CHW = window_position(*views[0].shape[1:]).to(views[0])
        mask_MTT = shift_mask(*views[0].shape[2:]).to(views[0])
        for first in range(len(views) if closed else len(views) - 1):
            second = (first + 1) % len(views)
            pair = torch.cat([views[first], views[second]]) + position_CHW
            for number, layer in enumerate(self.layers):
                pair = layer(pair, torch.cat(pair.chunk(2)[::-1]), mask_MTT if number % 2 else None)
            views[first], views[second] = pair.chunk(2)
        return torch.stack(views, 1)


class ViewLayer(nn.Module):
    """A view looks at itself, and then at another as that came into the layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = WindowAttention(channels)
        self.cross_attn_ffn = CrossAttention(channels)

    def forward(self, source_BCHW: Tensor, target_BCHW: Tensor, mask_MTT: Tensor | None) -> Tensor:
        """The source after both; a mask asks for windows that are shifted by half of their size."""
        height, width = source_BCHW.shape[2:]
        shift = (height // SPLITS // 2, width // SPLITS // 2) if mask_MTT is not None else (0, 0)
        source_BMTC, target_BMTC = (windows(view, shift) for view in (source_BCHW, target_BCHW))
        source_BMTC = source_BMTC + self.self_attn(source_BMTC, source_BMTC, mask_MTT)
        source_BMTC = source_BMTC + self.cross_attn_ffn(source_BMTC, target_BMTC, mask_MTT)
        return from_windows(source_BMTC, (height, width), shift)


class WindowAttention(nn.Module):
    """Attention of one head within windows, normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.merge = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )
        self.norm1 = nn.LayerNorm(channels)

    def forward(self, source_BMTC: Tensor, target_BMTC: Tensor, mask_MTT: Tensor | None) -> Tensor:
        """What the source takes from the target."""
        asked = self.q_proj(source_BMTC), self.k_proj(target_BMTC), self.v_proj(target_BMTC)
        return self.norm1(self.merge(F.scaled_dot_product_attention(*asked, attn_mask=mask_MTT)))


class CrossAttention(WindowAttention):
    """The same, mixed with the source by two layers."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        hidden = 2 * channels * EXPANSION
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, hidden, bias=False), nn.GELU(), nn.Linear(hidden, channels, bias=False)
        )
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, source_BMTC: Tensor, target_BMTC: Tensor, mask_MTT: Tensor | None) -> Tensor:
        """What is added to the source."""
        message_BMTC = super().forward(source_BMTC, target_BMTC, mask_MTT)
        return self.norm2(self.mlp(torch.cat([source_BMTC, message_BMTC], -1)))


def windows(view_BCHW: Tensor, shift: tuple[int, int]) -> Tensor:
    """The map in SPLITS x SPLITS windows, row by row, after rolling it up and left: (B, M, T, C)."""
    rolled = view_BCHW.roll((-shift[0], -shift[1]), (2, 3))
    cut = rolled.unflatten(3, (SPLITS, -1)).unflatten(2, (SPLITS, -1))  # (B, C, row, H', column, W')
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def from_windows(cut_BMTC: Tensor, size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Undo `windows` of a map of this H and W."""
    rows = cut_BMTC.unflatten(2, (size[0] // SPLITS, size[1] // SPLITS)).unflatten(1, (SPLITS, SPLITS))
    return rows.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).roll(shift, (2, 3))


def shift_mask(height: int, width: int) -> Tensor:
    """What is added to the scores within shifted windows, so that only old neighbours meet: 0 or APART, (M, T, T)."""
    region_H1, region_1W = (_regions(side).unsqueeze(axis) for axis, side in ((1, height), (0, width)))
    region_MT = windows((3 * region_H1 + region_1W)[None, None].float(), (0, 0))[0, :, :, 0]
    return APART * (region_MT.unsqueeze(1) != region_MT.unsqueeze(2)).float()


def _regions(side: int) -> Tensor:
    """Along a rolled side: 0 before the last window, 1 and 2 what the roll has brought together in it."""
    window = side // SPLITS
    return torch.tensor([0] * (side - window) + [1] * (window - window // 2) + [2] * (window // 2))


def window_position(channels: int, height: int, width: int) -> Tensor:
    """Sines and cosines of the place within a window, the same in all: half of the channels of the row, half of the
    column, float32 (C, H, W)."""
    half = channels // 2
    wavelength_K = 10000.0 ** (2 * (torch.arange(half) // 2) / half)
    of_row, of_column = (_waves(side // SPLITS, wavelength_K).repeat(SPLITS, 1) for side in (height, width))
    return torch.cat(
        [of_row.T.unsqueeze(2).expand(-1, -1, width), of_column.T.unsqueeze(1).expand(-1, height, -1)]
    ).contiguous()


def _waves(count: int, wavelength_K: Tensor) -> Tensor:
    """Of `count` cells, whose angles go up to a full turn, sine and cosine in turn, (count, K)."""
    angle_T = torch.arange(1, count + 1) / (count + 1e-6) * 2 * math.pi
    phase_TK = angle_T.unsqueeze(1) / wavelength_K
    return torch.stack([phase_TK[:, 0::2].sin(), phase_TK[:, 1::2].cos()], 2).flatten(1)


def around_the_car(cam2ego_BN44: Tensor) -> Tensor:
    """The order in which cameras look around the car, to the left from the one that looks most ahead, int64 (B, N)."""
    yaw_BN = torch.atan2(cam2ego_BN44[..., 1, 2], cam2ego_BN44[..., 0, 2])
    ahead_B1 = yaw_BN.gather(1, yaw_BN.abs().argmin(1, keepdim=True))
    return ((yaw_BN - ahead_B1) % (2 * math.pi)).argsort(1)
