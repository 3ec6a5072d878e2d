"""Upstream's checkpoint files (gaussianformer.md 2)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.checkpoint import load_strictly, resolve
from distill.errors import InputError


def load_official(network: nn.Module, path: str) -> None:
    """Load an upstream checkpoint; every name and shape must agree.

    The file holds the weights themselves or keeps them under "state_dict". Weights of sparse convolutions may lie in
    either layout of spconv, and the offsets of deformable convolutions may carry the name they had in DCN of old.

    Args:
        network: with upstream's module names.
        path: a `.pth` file.

    Raises:
        InputError: no such file, not a checkpoint, weights that are not finite or not of the network's kind of number,
            weights of another network, whose first differences are named, or of another configuration.
    """
    file = resolve(path)
    state = _read(file)
    expected = network.state_dict()
    state = {_name(name): value for name, value in state.items()}
    state = {name: _layout(value, expected.get(name)) for name, value in state.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{file}: {name} holds NaN or infinite values: the file is damaged, get it again")
        if name in expected and value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(
                f"{file}: {name} is {value.dtype} instead of {expected[name].dtype}: give the original file"
            )
    _check_constants(network, state, file)
    load_strictly(network, state, str(file))


def constants(network: nn.Module) -> dict[str, Tensor]:
    """What is in a state_dict but never trained: all buffers except the statistics of batch normalisation."""
    statistics = {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name, _ in module.named_buffers()
    }
    state = network.state_dict()
    return {name: value for name, value in network.named_buffers() if name in state.keys() - statistics}


def _check_constants(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Weights trained with another range, voxel size or empty Gaussian have the same names and shapes."""
    for name, value in constants(network).items():
        given = state.get(name, value)
        if given.shape == value.shape and not torch.equal(given.to(value.dtype), value):
            raise InputError(
                f"{file}: {name} is {given.flatten().tolist()}, the configuration says {value.flatten().tolist()}: "
                "give weights that were trained with this configuration"
            )


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(f"{file}: no such checkpoint: give the state_dict.pth that upstream published")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file}: not a file of PyTorch weights alone, or an incomplete one ({type(error).__name__}): get it again"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file}: holds no state_dict: give the state_dict.pth that upstream published")
    return state


def _name(name: str) -> str:
    """The offsets' convolution was once a sibling of the deformable one and is now its child."""
    return name.replace(".conv2_offset.", ".conv2.conv_offset.")


def _layout(value: Tensor, expected: Tensor | None) -> Tensor:
    """Sparse convolutions: (kx, ky, kz, out, in) -> (out, kx, ky, kz, in)."""
    if expected is None or value.ndim != 5 or value.shape == expected.shape:
        return value
    permuted = value.permute(3, 0, 1, 2, 4)
    return permuted if permuted.shape == expected.shape else value
