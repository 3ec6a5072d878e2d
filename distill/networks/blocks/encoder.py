"""Image encoder: a timm backbone and a small FPN that merges the chosen levels into the finest of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import InputError
from distill.networks.blocks.layers import conv_norm_act
from distill.networks.blocks.pretrained import Pretrained, classifier, features, normalisation


class ImageEncoder(nn.Module):
    """uint8 RGB images -> one feature map per camera (FPN: Lin et al. 2017).

    It is built with random weights; `load_pretrained` replaces those of the backbone.

    Args:
        name: timm model with feature levels.
        weights: which weights training begins with, see `distill.networks.blocks.pretrained`; no file is opened here.
        levels: backbone levels to merge, finest first; level i has stride 2 ** (i + 1).
        channels: channels of the result.
        frozen_levels: the backbone up to this many levels is never trained, batch-norm statistics included.

    Attributes:
        stride: image pixels per cell of the result, along both axes.

    Raises:
        InputError: unknown name, levels that it does not have, or "wheel" for a model that is not in there.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str, levels: list[int], channels: int, frozen_levels: int) -> None:
        super().__init__()
        model = classifier(name)
        mean_3, std_3 = normalisation(model, name, weights)
        if max(*levels, frozen_levels - 1) >= len(model.feature_info):
            raise InputError(
                f"encoder.levels={levels}, frozen_levels={frozen_levels}: {name} has {len(model.feature_info)} levels, "
                f"0 to {len(model.feature_info) - 1}"
            )
        self.backbone = features(model, levels)
        self.pretrained = Pretrained.of(model, self.backbone, weights)
        self.frozen = self._first_children(model.feature_info[:frozen_levels])
        for child in self.frozen:
            child.requires_grad_(False)
        self.register_buffer("mean", mean_3.view(3, 1, 1))
        self.register_buffer("std", std_3.view(3, 1, 1))
        widths = self.backbone.feature_info.channels()
        self.stride: int = self.backbone.feature_info.reduction()[0]
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = conv_norm_act(channels, channels, 3)

    def load_pretrained(self) -> None:
        """Replace the backbone's random weights by the pretrained ones, if there are any.

        Raises:
            InputError: they are missing or do not fit.
        """
        self.pretrained.load(self.backbone)

    def _first_children(self, levels: list[dict]) -> list[nn.Module]:
        """The backbone's layers up to the last of `levels`."""
        if not levels:
            return []
        names = [name for name, _ in self.backbone.named_children()]
        last = names.index(levels[-1]["module"].replace(".", "_"))
        return [self.backbone.get_submodule(name) for name in names[: last + 1]]

    def train(self, mode: bool = True) -> ImageEncoder:
        """Switch to training mode, all but the frozen layers."""
        super().train(mode)
        for child in self.frozen:
            child.eval()
        return self

    def forward(self, images_BN3HW: Tensor) -> Tensor:
        """uint8 (B, N, 3, H, W), H and W multiples of the coarsest stride -> (B, N, C, H / stride, W / stride)."""
        x_BCHW = images_BN3HW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        *finer, merged_BCHW = self.backbone((x_BCHW - self.mean) / self.std)
        *laterals, top = self.laterals
        merged_BCHW = top(merged_BCHW)
        for lateral, level_BCHW in zip(reversed(laterals), reversed(finer), strict=True):
            merged_BCHW = lateral(level_BCHW) + F.interpolate(merged_BCHW, level_BCHW.shape[-2:], mode="nearest")
        return self.smooth(merged_BCHW).unflatten(0, images_BN3HW.shape[:2])
