"""Adapters: other people's weights in our networks, by a table of differences and a strict check.

A family of networks has one `Adapter`. What it does not list is called and laid out here as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.weights import fit, load_strictly, read


@dataclass(frozen=True)
class Adapter:
    """How the weights that a family's authors publish differ from those of our network.

    An entry of either table that a file has nothing for is no error: several spellings may stand side by side.

    Attributes:
        names: upstream's name -> ours. A regular expression for a run of whole parts of a dotted name, wherever it
            stands (`conv2_offset`, `layers\\.(\\d+)`), and what replaces it, as in `re.sub`; each in turn.
        layouts: our name, a regular expression for all of it -> the axes of upstream's tensor in the order of ours.
            They are permuted where that gives our shape, so that a file may also have our order.
        give: what to do for a right file, for messages.
    """

    names: Mapping[str, str]
    layouts: Mapping[str, tuple[int, ...]]
    give: str

    def load(self, network: nn.Module, file: Path) -> None:
        """Load a file of upstream's into our network; every name of either must be one of the other.

        The file holds the weights themselves or wraps them, with or without one prefix before their names.

        Raises:
            InputError: no such file, not one of weights, weights that are not finite or not of the network's kind of
                number, weights of another network, whose first differences are named, or of another configuration.
        """
        expected = network.state_dict()
        content = self._renamed(file, read(file, self.give), ())
        found = fit(file, content, expected, unused=None)
        state = {name: self._laid_out(name, value, expected[name].shape) for name, value in found.state.items()}
        _check_constants(network, state, file)
        load_strictly(network, state, found.origin)
        found.tell()

    def fits(self, network: nn.Module, file: Path, content: Mapping[str, Any]) -> bool:
        """Whether a file holds exactly the network's names, with its shapes.

        Args:
            network: its values do not matter.
            file: for messages.
            content: of the file, see `distill.weights.read`.
        """
        expected = network.state_dict()
        try:
            found = fit(file, self._renamed(file, content, ()), expected, unused=None)
        except InputError:
            return False
        return all(self._laid_out(name, found.state[name], of.shape).shape == of.shape for name, of in expected.items())

    def _renamed(self, file: Path, node: Mapping[Any, Any], place: tuple[str, ...]) -> dict[Any, Any]:
        """What the file holds, its weights under our names wherever in it they are."""
        renamed: dict[Any, Any] = {}
        sources: dict[str, str] = {}
        for name, value in node.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                ours = self._ours(name)
                if ours in sources:
                    where = ": ".join([str(file), *[".".join(place)] * bool(place)])
                    raise InputError(f"{where}: {sources[ours]} and {name} are both {ours} of the network: {self.give}")
                sources[ours] = name
                renamed[ours] = value
            else:
                renamed[name] = self._renamed(file, value, (*place, str(name))) if isinstance(value, Mapping) else value
        return renamed

    def _ours(self, name: str) -> str:
        for upstream, ours in self.names.items():
            name = re.sub(rf"(?<![^.])(?:{upstream})(?![^.])", ours, name)
        return name

    def _laid_out(self, name: str, value: Tensor, shape: torch.Size) -> Tensor:
        for pattern, axes in self.layouts.items():
            if re.fullmatch(pattern, name) and value.ndim == len(axes):
                permuted = value.permute(axes)
                return permuted if permuted.shape == shape else value
        return value


def constants(network: nn.Module) -> dict[str, Tensor]:
    """What is in a state_dict but never trained: all buffers except the statistics of batch normalisation."""
    statistics = {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        for name, _ in module.named_buffers()
    }
    state = network.state_dict()
    return {name: value for name, value in network.named_buffers() if name in state.keys() - statistics}


def _check_constants(network: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Weights trained with another range, voxel size or initial value have the same names and shapes."""
    for name, value in constants(network).items():
        given = state[name]
        if given.shape == value.shape and not torch.equal(given.to(value.dtype), value):
            raise InputError(
                f"{file}: {name} is {given.flatten().tolist()}, the configuration says {value.flatten().tolist()}: "
                "give weights that were trained with this configuration"
            )
