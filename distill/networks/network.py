"""What a network is to those who train it, score it and dump it: any `nn.Module` that answers a batch of frames."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from distill.frame import Frame
from distill.networks.prediction import Occupancy


class OccupancyNetwork(Protocol):
    """An `nn.Module` whose forward takes a batch of frames.

    One whose map "bev" can be kept in a store has `bev_features`, a `distill.networks.prediction.FeatureKind`, too; one
    whose last set of points can, `point_kind`, a `distill.signals.PointKind`.
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
class LiftsMeasuredDepth(Protocol):
    """A network that can be told how far what its cameras see is."""

    def with_measured_depth(self, frame: Frame) -> Occupancy:
        """As `forward`, but image cells with a LiDAR return (`Frame.depth`) are lifted to where that lies.

        What it predicts of depth stays as it is predicted.
        """
