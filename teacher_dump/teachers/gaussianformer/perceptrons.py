"""The encoder's small networks that look at one Gaussian at a time (docs/formulas.md 6.6).

Letters: G Gaussians, K anchor columns, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teacher_dump.teachers.gaussianformer.anchors import OPACITY


def perceptron(inputs: int, channels: int, linears: int, repeats: int) -> list[nn.Module]:
    """`repeats` times: `linears` linear layers with ReLU, then a LayerNorm."""
    modules: list[nn.Module] = []
    for _ in range(repeats):
        for _ in range(linears):
            modules += [nn.Linear(inputs, channels), nn.ReLU(inplace=True)]
            inputs = channels
        modules.append(nn.LayerNorm(channels))
    return modules


class AnchorEncoder(nn.Module):
    """What an anchor looks like, as features: one perceptron per part, summed.

    Args:
        semantics: number of semantic columns.
        opacity: whether there is an opacity column.
        channels: C.
    """

    def __init__(self, semantics: int, opacity: bool, channels: int) -> None:
        super().__init__()
        self.slices = {"xyz_fc": slice(0, 3), "scale_fc": slice(3, 6), "rot_fc": slice(6, OPACITY)}
        if opacity:
            self.slices["opacity_fc"] = slice(OPACITY, OPACITY + 1)
        self.slices["semantics_fc"] = slice(OPACITY + opacity, OPACITY + opacity + semantics)
        for name, part in self.slices.items():
            self.add_module(name, nn.Sequential(*perceptron(part.stop - part.start, channels, 1, 2)))
        self.output_fc = nn.Sequential(*perceptron(channels, channels, 1, 2))

    def forward(self, anchor_GK: Tensor) -> Tensor:
        """Anchors in logit space -> (G, C)."""
        parts = [self.get_submodule(name)(anchor_GK[:, part]) for name, part in self.slices.items()]
        return self.output_fc(torch.stack(parts).sum(0))


class FeedForward(nn.Module):
    """Two linear layers, C -> hidden -> C, without a shortcut of its own."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True)), nn.Linear(hidden, channels)
        )

    def forward(self, x_GC: Tensor) -> Tensor:
        """(G, C) -> (G, C)."""
        return self.layers(x_GC)


class PreNormFeedForward(nn.Module):
    """Two linear layers from 2 C to C behind a LayerNorm, with a linear shortcut."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(2 * channels)
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(inplace=True)), nn.Linear(hidden, channels)
        )
        self.identity_fc = nn.Linear(2 * channels, channels)

    def forward(self, x_GC: Tensor) -> Tensor:
        """(G, 2 * C) -> (G, C)."""
        x_GC = self.pre_norm(x_GC)
        return self.identity_fc(x_GC) + self.layers(x_GC)
