"""Metrics as accumulators of constant memory, each a `torchmetrics.Metric` that can be used alone.

`update` takes one keyframe; `compute`, called by every process, adds up the processes and returns a dict of
percentages. Counts are integers, so the result does not depend on the order of keyframes or on the number of
processes. See `distill.metrics.base.KeyframeMetric`. `Confusion` alone is none, but quick to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from distill.metrics.confusion import Confusion
from distill.metrics.conventions import (
    MONOOCC_16,
    OCC3D_17,
    SURROUNDOCC_16,
    Convention,
    ConventionScore,
    conventions,
)
from distill.metrics.counting import count_confusion

if TYPE_CHECKING:
    from distill.metrics.bands import Bands, BandScore, distance_bands, height_bands
    from distill.metrics.calibration import Calibration
    from distill.metrics.flicker import Flicker
    from distill.metrics.fscore import FLASHOCC_DISTANCE, FScore
    from distill.metrics.occupancy import OccupancyScore
    from distill.metrics.rays import RayIoU, ray_directions, ray_origins
else:
    # torchmetrics takes longer to import than torch: only who uses one of these pays
    _MODULES = {
        "FLASHOCC_DISTANCE": "fscore",
        "BandScore": "bands",
        "Bands": "bands",
        "Calibration": "calibration",
        "FScore": "fscore",
        "Flicker": "flicker",
        "OccupancyScore": "occupancy",
        "RayIoU": "rays",
        "distance_bands": "bands",
        "height_bands": "bands",
        "ray_directions": "rays",
        "ray_origins": "rays",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__} has no attribute {name}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "FLASHOCC_DISTANCE",
    "MONOOCC_16",
    "OCC3D_17",
    "SURROUNDOCC_16",
    "BandScore",
    "Bands",
    "Calibration",
    "Confusion",
    "Convention",
    "ConventionScore",
    "FScore",
    "Flicker",
    "OccupancyScore",
    "RayIoU",
    "conventions",
    "count_confusion",
    "distance_bands",
    "height_bands",
    "ray_directions",
    "ray_origins",
]
