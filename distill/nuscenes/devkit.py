"""A nuScenes dataroot as its devkit knows it: the index of its keyframes, their sweeps, the classes of their points.

What is read of the tables is cached; `tables`, `sweeps` and `lidarseg` say how.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill import rigid
from distill.errors import InputError
from distill.nuscenes.cache import cache_file, cached
from distill.nuscenes.index import KeyframeIndex, Keyframes
from distill.nuscenes.layout import LIDAR, LIDAR_COLUMNS, SHORT_NAMES, nuscenes_scans
from distill.nuscenes.lidarseg import PointClasses, check_lidarseg, class_of_category, read_lidarseg
from distill.nuscenes.sweeps import Sweep, read_sweeps, rows_before
from distill.nuscenes.tables import Tables, read_tables


class NuScenesIndex(KeyframeIndex):
    """All keyframes of one version of a nuScenes dataroot.

    Its cameras are those in `distill.nuscenes.layout.CAMERAS`, if the dataroot has no others, whether or not it has all
    of these; otherwise its own ones: first those in `CAMERAS`, in that order, then the others by name.

    Args:
        root: dataroot.
        version: of its tables.
        records: see `distill.nuscenes.tables.read_tables`.
        lidar_columns: float32 per point in its scans.
        cache: the file that holds the records, beside which sweeps and lidarseg are kept; None: the tables are
            read for them.
    """

    def __init__(
        self,
        root: Path,
        version: str,
        records: np.ndarray,
        lidar_columns: int = LIDAR_COLUMNS,
        cache: Path | None = None,
    ):
        super().__init__(root, root / version, records, nuscenes_scans(lidar_columns), "splits.json")
        self.version = version
        self._cache = cache

    def keyframes(self, split: str) -> Keyframes:
        """The keyframes of a split that are present here; "all" is every keyframe.

        Args:
            split: a name from `<version>/splits.json` if the dataroot has one, otherwise a nuscenes-devkit split of
                this version (train, val, train_detect, train_track; mini_train, mini_val; test), or "all".
                v1.0-mini's own "train" and "val" are mini_train and mini_val.

        Raises:
            InputError: there is no such split, or none of its scenes is here.
        """
        known = split in self.splits  # a splits.json may have some of these names itself
        return super().keyframes(split if known else SHORT_NAMES.get((self.version, split), split))

    def lidarseg(self) -> PointClasses:
        """See `KeyframeIndex.lidarseg`."""
        tables = Tables(self.root, self.version)
        check_lidarseg(tables)
        notice = f"reading the lidarseg tables of {self.source}, once (minutes for v1.0-trainval)"
        paths = self._beside("lidarseg", lambda: read_lidarseg(tables, self.records), notice)
        return PointClasses(self.root, dict(zip(self.tokens, paths.tolist(), strict=True)), class_of_category(tables))

    def sweeps_before(self, row: int, channel: str, n: int) -> list[Sweep]:
        """Up to n sweeps of a channel before the keyframe in a row; see `sweeps`."""
        channels = (*self.channels, LIDAR)
        if channel not in channels:
            raise InputError(f"no channel {channel!r} in {self.source}: it has {', '.join(channels)}")
        first = row - len(self.past(row, row))
        found = rows_before(self._sweeps, channels.index(channel), first, row, n)
        return [self._sweep(channel, self._sweeps[sweep]) for sweep in found]

    def _sweep(self, channel: str, record: np.void) -> Sweep:
        sensor2ego, ego2global = record["sensor2ego"], record["ego2global"]
        return Sweep(
            channel=channel,
            timestamp=int(record["timestamp"]),
            path=self.root / os.fsdecode(record["path"]),
            sensor2ego=rigid.from_quaternion(sensor2ego[:4], sensor2ego[4:]),
            ego2global=rigid.from_quaternion(ego2global[:4], ego2global[4:]),
            width=int(record["width"]),
            height=int(record["height"]),
            intrinsics=None if channel == LIDAR else np.array(record["intrinsics"]),
        )

    @functools.cached_property
    def _sweeps(self) -> np.ndarray:
        """Records of all sweeps, mapped from disk (`distill.nuscenes.sweeps.read_sweeps`)."""
        notice = f"reading the sweeps of {self.source}, once (minutes for v1.0-trainval)"
        return self._beside("sweeps", lambda: read_sweeps(Tables(self.root, self.version), self.records), notice)

    def _beside(self, name: str, read: Callable[[], np.ndarray], notice: str) -> np.ndarray:
        """What is read of the tables besides the records, and kept beside them."""
        if self._cache is None:
            return read()
        return cached(self._cache.with_name(f"{self._cache.stem}-{name}.npy"), read, notice)


def load_index(root: Path, version: str, cache_dir: Path, lidar_columns: int = LIDAR_COLUMNS) -> NuScenesIndex:
    """Open a nuScenes dataroot; the first time, its tables are read and the result is cached.

    Args:
        root: dataroot holding `<version>/*.json`, samples/ and, for labels, gts/.
        version: "v1.0-trainval", "v1.0-test", "v1.0-mini", or another one with a splits.json among its tables.
        cache_dir: folder for the index, made if absent.
        lidar_columns: float32 per point in the scans of this dataroot.

    Raises:
        InputError: a missing dataroot or version, a table that is broken or holds what is no calibration or pose, a
            keyframe without LIDAR_TOP or without any camera, or a cache_dir that cannot be used.
    """
    root, cache = Path(root), cache_file(Path(root), version, Path(cache_dir))
    notice = f"reading the nuScenes tables of {root / version}, once (minutes for v1.0-trainval)"
    records = cached(cache, lambda: read_tables(Tables(root, version)), notice)
    return NuScenesIndex(root, version, records, lidar_columns, cache)
