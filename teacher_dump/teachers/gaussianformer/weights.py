"""Upstream's checkpoint files (docs/formulas.md 8.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.weights import fit, load_strictly, read


def load_official(network: nn.Module, path: str) -> None:
    """Load an upstream checkpoint; every name and shape must agree.

    The file holds the weights themselves or wraps them, under upstream's names or with one prefix before them. Weights
    of sparse convolutions may lie in either layout of spconv, and the offsets of deformable convolutions may carry the
    name they had in DCN of old.

    Args:
        network: with upstream's module names.
        path: a `.pth` file.

    Raises:
        InputError: no such file, not a checkpoint, weights that are not finite or not of the network's kind of number,
            weights of another network, whose first differences are named, or of another configuration.
    """
    file = resolve(path)
    expected = network.state_dict()
    content = read(file, "give the state_dict.pth that upstream published")
    found = fit(file, _renamed(content), expected, unused=None)
    state = {name: _layout(value, expected[name]) for name, value in found.state.items()}
    _check_constants(network, state, file)
    load_strictly(network, state, found.origin)
    found.tell()


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
        given = state[name]
        if given.shape == value.shape and not torch.equal(given.to(value.dtype), value):
            raise InputError(
                f"{file}: {name} is {given.flatten().tolist()}, the configuration says {value.flatten().tolist()}: "
                "give weights that were trained with this configuration"
            )


def _renamed(node: Any) -> Any:
    """The offsets' convolution was once a sibling of the deformable one and is now its child."""
    if not isinstance(node, Mapping):
        return node
    return {
        name.replace(".conv2_offset.", ".conv2.conv_offset.") if isinstance(name, str) else name: _renamed(value)
        for name, value in node.items()
    }


def _layout(value: Tensor, expected: Tensor) -> Tensor:
    """Sparse convolutions: (kx, ky, kz, out, in) -> (out, kx, ky, kz, in)."""
    if value.ndim != 5 or value.shape == expected.shape:
        return value
    permuted = value.permute(3, 0, 1, 2, 4)
    return permuted if permuted.shape == expected.shape else value
