"""The encoder of GaussianFormer: Gaussians look at the images and at each other, and move (docs/formulas.md 6.6).

Letters: G Gaussians, K anchor columns, C channels, N cameras, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from distill.errors import InputError
from teacher_dump.teachers.gaussianformer.anchors import OPACITY
from teacher_dump.teachers.gaussianformer.attention import DeformableAttention, View
from teacher_dump.teachers.gaussianformer.perceptrons import AnchorEncoder, FeedForward, PreNormFeedForward
from teacher_dump.teachers.gaussianformer.refinement import Refinement
from teacher_dump.teachers.gaussianformer.sparse_conv import SparseConv3D

_CHANNELS, _HIDDEN, _BLOCKS = 128, 512, 4
_BLOCK_V1 = ("spconv", "norm", "deformable", "ffn", "norm", "refine")
_BLOCK_V2 = (
    *("identity", "deformable", "add", "norm", "identity", "ffn", "add", "norm"),
    *("identity", "spconv", "add", "norm", "identity", "ffn", "add", "norm"),
    "refine",
)


class GaussianOccEncoder(nn.Module):
    """Four blocks of attention, convolution and refinement, in upstream's flat list of layers.

    Args:
        version: "v1", GaussianFormer, or "v2", GaussianFormer-2.
        scale_range: smallest and largest scale of a Gaussian, metres.
        semantics: number of semantic columns.
        opacity: whether anchors have an opacity column.
        step: the longest step of a refinement along each axis, metres.
        projected: whether a linear layer follows the convolutions.
        legacy: behave as upstream did when it trained the published v1 weights (docs/formulas.md 6.10).
        duplicates: how the convolution treats Gaussians in one voxel; see `kernels.submanifold`.

    Raises:
        InputError: `version` or `duplicates` is something else.
    """

    def __init__(
        self,
        version: Literal["v1", "v2"],
        scale_range: tuple[float, float],
        semantics: int,
        opacity: bool,
        step: tuple[float, float, float],
        projected: bool,
        legacy: bool,
        duplicates: Literal["single", "sum"],
    ) -> None:
        super().__init__()
        _check("version", version, ("v1", "v2"))
        _check("duplicates", duplicates, ("single", "sum"))
        first = version == "v1"
        build: dict[str, Callable[[], nn.Module]] = {
            "identity": nn.Identity,
            "add": nn.Identity,
            "norm": lambda: nn.LayerNorm(_CHANNELS),
            "ffn": lambda: (PreNormFeedForward if first else FeedForward)(_CHANNELS, _HIDDEN),
            "deformable": lambda: DeformableAttention(
                _CHANNELS, scale_range, 2 if first else 6, 1.0 if first else 6.0, joined=first, legacy=legacy
            ),
            "spconv": lambda: SparseConv3D(_CHANNELS, 0.5 if first else 1.0, not first, projected, legacy, duplicates),
            "refine": lambda: Refinement(OPACITY + opacity + semantics, _CHANNELS, step, metric=not first),
        }
        # the first block of v1 has nothing to convolve yet
        self.blocks = [_BLOCK_V1[2:], *[_BLOCK_V1] * (_BLOCKS - 1)] if first else [_BLOCK_V2] * _BLOCKS
        self.anchor_encoder = AnchorEncoder(semantics, opacity, _CHANNELS)
        self.layers = nn.ModuleList(build[name]() for block in self.blocks for name in block)

    def forward(
        self,
        anchor_GK: Tensor,
        feature_GC: Tensor,
        maps: list[Tensor],
        lidar2img_N44: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """Refine the Gaussians of one keyframe.

        Args:
            anchor_GK: in logit space, float32; see `teacher_dump.teachers.gaussianformer.anchors`.
            feature_GC: float32.
            maps: four feature maps (N, C, H, W), float32.
            lidar2img_N44: float32, from the LIDAR_TOP frame, metres, to pixels times depth.
            image_size: rows and columns of the images those pixels belong to.

        Returns:
            The anchors (G, K) after the last block.
        """
        view = View(maps, lidar2img_N44, image_size)
        for number in range(len(self.blocks)):
            anchor_GK, feature_GC = self.run_block(number, anchor_GK, feature_GC, view)
        return anchor_GK

    def run_block(self, number: int, anchor_GK: Tensor, feature_GC: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Anchors and features after one block, given those before it."""
        block, first = self.blocks[number], sum(len(block) for block in self.blocks[:number])
        embedding_GC = self.anchor_encoder(anchor_GK)
        identity_GC = feature_GC
        for name, layer in zip(block, self.layers[first : first + len(block)], strict=True):
            if name == "identity":
                identity_GC = feature_GC
            elif name == "add":
                feature_GC = feature_GC + identity_GC
            elif name == "deformable":
                feature_GC = layer(feature_GC, embedding_GC, anchor_GK, view)
            elif name == "spconv":
                feature_GC = layer(feature_GC, anchor_GK)
            elif name == "refine":
                anchor_GK = layer(feature_GC, embedding_GC, anchor_GK)
            else:
                feature_GC = layer(feature_GC)
        return anchor_GK, feature_GC


def _check(name: str, value: str, allowed: tuple[str, str]) -> None:
    if value not in allowed:
        raise InputError(f"teacher.network.encoder.{name}={value}: it is '{allowed[0]}' or '{allowed[1]}'")
