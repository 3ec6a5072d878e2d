"""Metrics as accumulators of constant memory, each a `torchmetrics.Metric` that can be used alone.

`update` takes one keyframe; `compute`, called by every process, adds up the processes and returns a dict of
percentages. Counts are integers, so the result does not depend on the order of keyframes or on the number of
processes. See `distill.metrics.base.KeyframeMetric`.
"""

from distill.metrics.bands import Bands, BandScore, distance_bands, height_bands
from distill.metrics.calibration import Calibration
from distill.metrics.confusion import OccupancyResult, OccupancyScore
from distill.metrics.conventions import MONOOCC_16, OCC3D_17, SURROUNDOCC_16, Convention, conventions
from distill.metrics.counting import count_confusion
from distill.metrics.flicker import Flicker
from distill.metrics.fscore import FLASHOCC_DISTANCE, FScore
from distill.metrics.rays import RayIoU, ray_directions, ray_origins

__all__ = [
    "FLASHOCC_DISTANCE",
    "MONOOCC_16",
    "OCC3D_17",
    "SURROUNDOCC_16",
    "BandScore",
    "Bands",
    "Calibration",
    "Convention",
    "FScore",
    "Flicker",
    "OccupancyResult",
    "OccupancyScore",
    "RayIoU",
    "conventions",
    "count_confusion",
    "distance_bands",
    "height_bands",
    "ray_directions",
    "ray_origins",
]
