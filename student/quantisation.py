"""Quantisation-aware training: a network computes as its ONNX file in 8 bits will, while its weights stay in float32.

After Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR
2018. What is trained is an ordinary checkpoint; `occ-export onnx=int8` brings it to 8 bits.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from distill.errors import InputError

_ACTIVATION = (0, 255)
_WEIGHT = (-127, 127)
_ABSORBED = (F.batch_norm, F.relu, Tensor.relu, F.hardtanh)  # by the convolution before them
_READ, _WRITTEN = 0, 1


class FakeQuantisation(nn.Module):
    """Rounds what convolutions and products of matrices read and write to what 8 bits hold (docs/formulas.md 14.2).

    Activations become uint8 between the least and the largest value that was met in training, weights int8, symmetric,
    channel by channel. Gradients pass as if nothing was rounded, but none where a value lies outside its range.

    Args:
        network: has convolutions and linear layers; nothing is added to it.
        keep: parts of the names of layers that stay in float32.

    Attributes:
        layers: names of the modules that are rounded.
        lowest_2L, highest_2L: the ranges of what they read, and of what they write.

    Raises:
        InputError: there is no such layer to keep.
    """

    lowest_2L: Tensor
    highest_2L: Tensor

    def __init__(self, network: nn.Module, keep: Collection[str]) -> None:
        super().__init__()
        multiply = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        kept = named(multiply, keep)
        self.layers = [name for name in multiply if name not in kept]
        self.register_buffer("lowest_2L", torch.zeros(2, len(self.layers)))
        self.register_buffer("highest_2L", torch.zeros(2, len(self.layers)))

    def of(self, network: nn.Module) -> AbstractContextManager[Any]:
        """A context in which a network computes in simulated 8 bits; ranges grow while it is in training mode.

        Args:
            network: the one that this was made for, or a copy of it.
        """
        return _Rounding(self, network)

    def rounded(self, values: Tensor, place: tuple[int, int], grow: bool) -> Tensor:
        """Values that only 256 numbers can have.

        Args:
            values: of any shape.
            place: of their range.
            grow: the range, first, so that they fit.
        """
        if grow:
            with torch.no_grad():
                lowest, highest = values.aminmax()
                self.lowest_2L[place] = torch.minimum(self.lowest_2L[place], lowest.float())
                self.highest_2L[place] = torch.maximum(self.highest_2L[place], highest.float())
        least, largest = _ACTIVATION
        lowest, highest = self.lowest_2L[place], self.highest_2L[place]
        scale = ((highest - lowest) / (largest - least)).clamp_min(torch.finfo(torch.float32).tiny)
        zero = (least - lowest / scale).round().int()
        return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, least, largest).to(values.dtype)


def named(layers: Collection[str], parts: Collection[str]) -> list[str]:
    """The layers in whose names one of these parts occurs, whole words between dots.

    Raises:
        InputError: one occurs in none.
    """
    found = {part: [name for name in layers if f".{part}." in f".{name}."] for part in parts}
    for part, names in found.items():
        if not names:
            raise InputError(f"int8.keep names {part}, which is in no layer's name: there are {', '.join(layers)}")
    return [name for name in layers if any(name in names for names in found.values())]


def _rounded(weight: Tensor) -> Tensor:
    """Each output channel to multiples of 1/127 of its largest magnitude."""
    least, largest = _WEIGHT
    scale_C = weight.detach().flatten(1).abs().amax(1).float() / largest
    scale_C = scale_C.clamp_min(torch.finfo(torch.float32).tiny)
    zero_C = torch.zeros_like(scale_C, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale_C, zero_C, 0, least, largest)


class _Rounding(TorchFunctionMode):
    """Sees every function of PyTorch that a network calls, and rounds where the file does.

    What a layer reads is rounded for whoever else reads it, and so is what one writes. A file keeps a batch norm and a
    ReLU in the convolution before them; a bias of a product of matrices is added to what was rounded.
    """

    def __init__(self, int8: FakeQuantisation, network: nn.Module) -> None:
        super().__init__()
        self.int8, self.network = int8, network
        self.layers = {id(network.get_submodule(name).weight): layer for layer, name in enumerate(int8.layers)}
        self.places = WeakTensorKeyDictionary()  # activations that are rounded when they are read -> of their range

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABSORBED and args[0] in self.places:
            found = func(*args, **kwargs)
            self.places[found] = self.places[args[0]]
            return found
        layer = self.layers.get(id(args[1])) if func in (F.conv2d, F.linear) else None
        if layer is not None:
            self.places.setdefault(args[0], (_READ, layer))
        if getattr(func, "__name__", None) != "__get__":  # of a property, such as its shape
            args, kwargs = tree_map_only(Tensor, self._as_read, (args, kwargs))
        return func(*args, **kwargs) if layer is None else self._multiplied(func, layer, *args)

    def _multiplied(self, func: Any, layer: int, values: Tensor, weight: Tensor, bias: Any = None, *rest: Any) -> Any:
        if func is F.linear:
            found = self._rounded(func(values, _rounded(weight)), (_WRITTEN, layer))
            return found if bias is None else found + bias
        found = func(values, _rounded(weight), bias, *rest)
        self.places[found] = (_WRITTEN, layer)
        return found

    def _as_read(self, values: Tensor) -> Tensor:
        place = self.places.get(values)
        return values if place is None else self._rounded(values, place)

    def _rounded(self, values: Tensor, place: tuple[int, int]) -> Tensor:
        return self.int8.rounded(values, place, grow=self.network.training)
