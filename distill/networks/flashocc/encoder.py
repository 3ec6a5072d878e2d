"""FlashOcc's image encoder: ResNet-50 and a pyramid without norms and activations (docs/formulas.md 9.1).

Letters: M images, C channels, H W image rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import InputError
from distill.networks.blocks.pretrained import Pretrained, classifier, features

# of 0..255, in the order of the channels as they come
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_STAGES = range(1, 5)
_COARSEST = 32


class Backbone(nn.Module):
    """timm's ResNet-50 without its classifier, by the names that torchvision gives its layers.

    It is built with random weights; `load_pretrained` replaces them.

    Args:
        weights: which weights training begins with, see `distill.networks.blocks.pretrained`; no file is opened here.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        model = classifier("resnet50")
        levels = features(model, _STAGES)
        self.pretrained = Pretrained.of(model, levels, weights)
        for name, child in levels.named_children():
            self.add_module(name, child)

    def load_pretrained(self) -> None:
        """Replace the random weights by the pretrained ones, if there are any.

        Raises:
            InputError: they are missing or do not fit.
        """
        self.pretrained.load(self)

    def forward(self, images_M3HW: Tensor, stages: int) -> list[Tensor]:
        """What the first `stages` of four stages say, at strides 4, 8, 16 and 32."""
        x_MCHW, found = images_M3HW, list[Tensor]()
        for name, child in self.named_children():
            if len(found) == stages:
                break
            x_MCHW = child(x_MCHW)
            if name.startswith("layer"):
                found.append(x_MCHW)
        return found


class ImageFeatures(NamedTuple):
    """Of images.

    Attributes:
        merged_MCHW: of the pyramid, at stride 16.
        fine_MCHW: of the backbone's first stage, at stride 4.
    """

    merged_MCHW: Tensor
    fine_MCHW: Tensor


class ImageEncoder(nn.Module):
    """Normalised images -> features at stride 16.

    Args:
        weights: see `Backbone`.
        channels: of the features.
    """

    stride, fine_stride = 16, 4

    def __init__(self, weights: str, channels: int) -> None:
        super().__init__()
        self.backbone = Backbone(weights)
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in (1024, 2048))
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images_M3HW: Tensor) -> ImageFeatures:
        """Features of float32 images (M, 3, H, W)."""
        fine_MCHW, _, *levels = self.backbone(images_M3HW, len(_STAGES))
        return ImageFeatures(self.merge(levels), fine_MCHW)

    def merge(self, levels: list[Tensor]) -> Tensor:
        """The backbone's last two stages at the resolution of the finer one."""
        merged_MCHW, top_MCHW = (lateral(level) for lateral, level in zip(self.laterals, levels, strict=True))
        return self.smooth(merged_MCHW + F.interpolate(top_MCHW, merged_MCHW.shape[-2:], mode="nearest"))

    def fine(self, images_M3HW: Tensor) -> Tensor:
        """`fine_MCHW` of these images alone."""
        return self.backbone(images_M3HW, 1)[0]


def normalised(images_BN3HW: Tensor, bgr: bool) -> Tensor:
    """uint8 RGB (B, N, 3, H, W) -> float32 (B, N, 3, H, W) as the backbone reads them.

    Args:
        images_BN3HW: R, G, B.
        bgr: see `distill.networks.flashocc.convention.Convention`.

    Raises:
        InputError: H or W is no multiple of the coarsest stride.
    """
    check_image_size(*images_BN3HW.shape[-2:])
    mean_311, std_311 = (images_BN3HW.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (_MEAN, _STD))
    return ((images_BN3HW.flip(2) if bgr else images_BN3HW) - mean_311) / std_311


def check_image_size(height: int, width: int) -> None:
    """Raise InputError unless both are multiples of the coarsest stride."""
    if height % _COARSEST or width % _COARSEST:
        raise InputError(f"image_size=[{height}, {width}]: FlashOcc takes multiples of {_COARSEST}, such as [256, 704]")
