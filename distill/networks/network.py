"""What a network is to those who train it, score it and dump it: any `nn.Module` that answers a batch of frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import nn

from distill.frame import Frame
from distill.networks.adapter import Adapter
from distill.networks.prediction import Occupancy


class OccupancyNetwork(Protocol):
    """An `nn.Module` whose forward takes a batch of frames.

    One whose map "bev" can be kept in a store has `bev_features`, a `distill.networks.prediction.FeatureKind`, too, and
    one whose map "voxels" can has `voxel_features`; one
    that says `proposes` has scores of proposals (`Occupancy.proposals`), one with `proposals_of`, the name of a
    teacher, is given that teacher's while it learns (`Frame.proposals`), and one whose last set of points can be kept
    has `point_kind`, a `distill.signals.PointKind`.
    Building one opens no file. What begins from weights that lie in a file `StartsPretrained`.
    """

    @property
    def depth_stride(self) -> int | None:
        """Image pixels along the edge of one cell of the depth it predicts; None: it predicts none.

        Measured depth, for terms that compare the two, comes in cells of that size.
        """

    def forward(self, frame: Frame) -> Occupancy:
        """Predict from what it asks for of a batch of frames."""


@runtime_checkable
class StartsPretrained(Protocol):
    """A network, or a part of one, that training begins from weights of others."""

    def load_pretrained(self) -> None:
        """Load them; called once, after the network is built and before any other weights are loaded.

        Raises:
            InputError: they are missing or do not fit.
        """


@runtime_checkable
class OfOthers(Protocol):
    """A network of other people's, who publish weights in files of their own."""

    def published(self) -> Adapter:
        """How their files are read.

        Raises:
            InputError: the network is built otherwise than theirs, which would change what the weights say.
        """


@runtime_checkable
class LiftsMeasuredDepth(Protocol):
    """A network that can be told how far what its cameras see is."""

    def with_measured_depth(self, frame: Frame) -> Occupancy:
        """As `forward`, but image cells with a LiDAR return (`Frame.depth`) are lifted to where that lies.

        What it predicts of depth stays as it is predicted.
        """


@runtime_checkable
class Streams(Protocol):
    """A network that looks back, and need not look at the same keyframe twice."""

    def streaming(self, calls: int) -> Callable[[Frame], Occupancy]:
        """What answers as `forward` does and remembers what it made of the keyframes in so many of the last calls.

        The network is in evaluation mode, and its weights stay as they are.
        """


def streamed(network: nn.Module, calls: int) -> Callable[[Frame], Occupancy]:
    """A network for keyframes that come in the order of time; see `Streams`. In any other order it is as right."""
    return network.streaming(calls) if isinstance(network, Streams) else network
