"""What a dump will cost, measured on its first keyframes, before it costs a week."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from distill.errors import InputError
from distill.store import TeacherStore

HANDFUL = 5  # keyframes that an estimate dumps
_BLOCK = 4096  # bytes in which file systems hand out their space


class Pace:
    """How long keyframes take once a dump runs: what comes before the first batch is done is not counted."""

    def __init__(self) -> None:
        self._begun, self._ended, self._count = math.nan, math.nan, 0

    def done(self, count: int) -> None:
        """So many keyframes were answered about."""
        if math.isnan(self._begun):
            self._begun = time.perf_counter()
        else:
            self._count += count

    def written(self) -> None:
        """All of them are in the store."""
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Per keyframe; NaN before a second batch."""
        return (self._ended - self._begun) / self._count if self._count else math.nan


def check_space(store: TeacherStore, written: Sequence[str], left: int) -> None:
    """Refuse a dump that the disk cannot hold.

    Args:
        store: where it goes.
        written: keyframes that are in it and tell the size of others.
        left: how many are to come.

    Raises:
        InputError: there is less free space than they will take.
    """
    needed, free = left * bytes_each(store, written), store.place.free()
    if free is not None and needed > free:
        raise InputError(
            f"{store.path}: {left} more keyframes of {needed / left / 1e6:.2f} MB will take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: free some, give another store.path, keep less (store.encoding, "
            "dump.signals), or go on nevertheless with dump.space=ignore; what is there stays"
        )


def forecast(store: TeacherStore, written: Sequence[str], left: int, left_here: int, pace: Pace) -> str:
    """In words, what the rest of a dump takes.

    Args:
        store, written, left: see `check_space`.
        left_here: how many of those that are to come are this process's.
        pace: of this process.
    """
    each, free = bytes_each(store, written), store.place.free()
    there = "" if free is None else f", {free / 1e9:.1f} GB are free where {store.path} is"
    lines = [
        f"estimate from {len(written)} keyframes: {pace.seconds:.2f} s and {each / 1e6:.2f} MB each",
        f"the other {left}: {left * each / 1e9:.2f} GB{there}",
    ]
    if left_here and not math.isnan(pace.seconds):
        seconds = left_here * pace.seconds
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
        lines.append(f"{_duration(seconds)}, until {until} if it is started now, with as many processes")
    return "\n".join([*lines, "what was dumped stays; the same command without dump.estimate goes on from there"])


def bytes_each(store: TeacherStore, written: Sequence[str]) -> float:
    """What a keyframe takes on the disk, the mean of some."""
    # with the record of its commit
    return sum(store.size(token, _BLOCK) + _BLOCK for token in written) / len(written)


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return " ".join(f"{count} {name}" for count, name in ((days, "d"), (hours, "h"), (minutes, "min")) if count)
