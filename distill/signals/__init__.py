"""Signals: the kinds of teacher knowledge; see `signal` for what one is.

Those of the project are known by name, others by the dotted path of their class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.located import located
from distill.signals.bev import NOT_COVERED, Bev
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.columns import ColumnVoxels
from distill.signals.features import Features, VoxelFeatures
from distill.signals.gaussians import GaussianKind, GaussianSet
from distill.signals.points import PointKind, Points
from distill.signals.seen import Seen
from distill.signals.signal import Signal, TeacherPrediction
from distill.signals.voxels import Voxels

__all__ = [
    "ENCODINGS",
    "NOT_COVERED",
    "SIGNALS",
    "GaussianKind",
    "PointKind",
    "Signal",
    "SignalsOf",
    "TeacherPrediction",
    "described",
    "signal_class",
]

SIGNALS: dict[str, type[Signal]] = {
    "bev": LevelBev,
    "voxels": LevelVoxels,
    "gaussians": GaussianSet,
    "seen": Seen,
    "features": Features,
    "voxel_features": VoxelFeatures,
    "points": Points,
}

# how a store keeps what teachers say of voxels and columns: as few bytes as do, or within 1e-4 nats of every voxel
ENCODINGS: dict[str, dict[str, type[Signal]]] = {
    "columns": {"voxels": ColumnVoxels, "bev": LevelBev},
    "levels": {"voxels": LevelVoxels, "bev": LevelBev},
    "fine": {"voxels": Voxels, "bev": Bev},
}


def signal_class(name_or_path: str) -> type[Signal]:
    """The class of a signal.

    Raises:
        InputError: it is neither a name of `SIGNALS` nor the dotted path of a subclass of `Signal`.
    """
    if name_or_path in SIGNALS:
        return SIGNALS[name_or_path]
    where = f"signal {name_or_path}"
    if "." not in name_or_path:
        raise InputError(f"{where}: choose one of {', '.join(SIGNALS)}, or give MODULE.CLASS of a signal of your own")
    found = located(name_or_path, where)
    if not (isinstance(found, type) and issubclass(found, Signal)):
        raise InputError(f"{where} is no subclass of distill.signals.Signal")
    return found


def described(signals: Iterable[Signal]) -> dict[str, dict[str, Any]]:
    """Name -> description of each, as JSON keeps it, with the dotted path of its class as `_target_`.

    Raises:
        InputError: two have the same name.
    """
    told: dict[str, dict[str, Any]] = {}
    for signal in signals:
        if signal.name in told:
            raise InputError(f"two signals have the name {signal.name}: a store holds one of each name")
        kind = type(signal)
        description = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **signal.describe()}
        told[signal.name] = json.loads(json.dumps(description))
    return told


class SignalsOf(Mapping[str, Signal]):
    """The signals that are `described`, each built when asked for: one whose class is unknown here harms no other.

    Args:
        descriptions: by name.
        grid, classes: of the store.
        read_constant: name of an array -> what the store keeps once.
    """

    def __init__(
        self,
        descriptions: Mapping[str, dict[str, Any]],
        grid: VoxelGrid,
        classes: tuple[str, ...],
        read_constant: Callable[[str], np.ndarray],
    ) -> None:
        self._descriptions, self._grid, self._classes = descriptions, grid, classes
        self._read_constant = read_constant
        self._built: dict[str, Signal] = {}

    def __getitem__(self, name: str) -> Signal:
        if name not in self._built:
            description = self._descriptions[name]
            kind = signal_class(description["_target_"])
            try:
                self._built[name] = kind.from_description(description, self._grid, self._classes, self._read_constant)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"signal {name} was described otherwise than {description['_target_']} expects ({error!r}): "
                    "use the version that described it, or dump it again"
                ) from error
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._descriptions)

    def __len__(self) -> int:
        return len(self._descriptions)
