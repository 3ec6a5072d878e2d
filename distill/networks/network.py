"""What a network is to those who train it, score it and dump it: any `nn.Module` that answers a batch of frames."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from distill.frame import Frame
from distill.networks.adapter import Adapter
from distill.networks.prediction import Occupancy


class OccupancyNetwork(Protocol):
    """An `nn.Module` whose forward takes a batch of frames.

    One whose map "bev" can be kept in a store has `bev_features`, a `distill.networks.prediction.FeatureKind`, too.
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
