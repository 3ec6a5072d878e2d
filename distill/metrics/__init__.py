"""Metrics as accumulators of constant memory.

Every metric is a class with `update(prediction, semantics, mask)` for one keyframe, `all_reduce()` to add up the
processes, and `result()` for its numbers. Counts are integers, so the result does
not depend on the order of keyframes or on the number of processes.
"""

from distill.metrics.confusion import OccupancyResult, OccupancyScore

__all__ = ["OccupancyResult", "OccupancyScore"]
