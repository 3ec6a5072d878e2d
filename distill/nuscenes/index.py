"""A compact index of keyframes that is read from whatever describes them only once.

The index is one numpy record array, one record per keyframe, mapped from disk: it opens at once whatever its size, and
loader workers and ranks share its pages. `Keyframe` objects are made on access. `NuScenesIndex` is of a nuScenes
dataroot; `distill.nuscenes.challenge` and `distill.nuscenes.rig` read other layouts.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from distill import rigid
from distill.errors import InputError
from distill.nuscenes.cache import cache_file, cached
from distill.nuscenes.keyframe import Camera, Keyframe
from distill.nuscenes.layout import LIDAR, LIDAR_COLUMNS, SHORT_NAMES, ScanFormat, nuscenes_scans
from distill.nuscenes.lidarseg import PointClasses, check_lidarseg, class_of_category, read_lidarseg
from distill.nuscenes.records import cameras_of
from distill.nuscenes.sweeps import Sweep, read_sweeps, rows_before
from distill.nuscenes.tables import Tables, read_tables


class Keyframes(Sequence[Keyframe]):
    """Some keyframes of an index, in an order of their own; `Keyframe` objects are made on access."""

    def __init__(self, index: KeyframeIndex, rows: np.ndarray):
        self._index = index
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, item: int) -> Keyframe: ...
    @overload
    def __getitem__(self, item: slice) -> Keyframes: ...
    def __getitem__(self, item: int | slice) -> Keyframe | Keyframes:
        if isinstance(item, slice):
            return Keyframes(self._index, self._rows[item])
        return self._index.at(int(self._rows[item]))

    @property
    def root(self) -> Path:
        """What paths of files are relative to."""
        return self._index.root

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the cameras; see `KeyframeIndex.channels`."""
        return self._index.channels

    @property
    def tokens(self) -> list[str]:
        """Sample tokens, in order."""
        return [token.decode() for token in self._index.records["token"][self._rows]]

    @property
    def scenes(self) -> list[str]:
        """The scene name of each of `tokens`."""
        return [scene.decode() for scene in self._index.records["scene"][self._rows]]

    @property
    def absent_cameras(self) -> dict[str, int]:
        """How many of the keyframes lack a camera, for each channel that is not in all of them."""
        cameras = self._index.records["cameras"]
        absent = {channel: int((cameras[channel]["path"][self._rows] == b"").sum()) for channel in self.channels}
        return {channel: count for channel, count in absent.items() if count}

    def where(self, chosen: Sequence[bool]) -> Keyframes:
        """The keyframes that are chosen, in order; `chosen` has one entry for each of them."""
        return Keyframes(self._index, self._rows[np.array(chosen, dtype=bool)])

    def before(self, i: int, n: int) -> list[Keyframe]:
        """Up to n keyframes before the i-th one in its scene, the nearest first; they need not be among these."""
        return [self._index.at(row) for row in self._index.past(int(self._rows[i]), n)]

    def around(self, i: int, n: int) -> list[Keyframe]:
        """Those of these that are up to n keyframes before or behind the i-th one in its scene, the nearest first."""
        row = int(self._rows[i])
        rows = np.intersect1d([*self._index.past(row, n), *self._index.future(row, n)], self._rows).tolist()
        return [self._index.at(other) for other in sorted(rows, key=lambda other: abs(other - row))]

    def sweeps(self, i: int, channel: str, n: int) -> list[Sweep]:
        """Up to n sweeps before the i-th keyframe; see `KeyframeIndex.sweeps`."""
        return self._index.sweeps_before(int(self._rows[i]), channel, n)


class KeyframeIndex:
    """All keyframes of some data, ordered by scene name and, within a scene, by time.

    Args:
        root: what paths of files are relative to.
        source: what describes the keyframes: a file or a folder.
        records: see `distill.nuscenes.records.records_of`.
        scan: what stands in LiDAR files.
        splits_file: in what the splits are listed, for messages.
    """

    def __init__(self, root: Path, source: Path, records: np.ndarray, scan: ScanFormat, splits_file: str):
        self.root = root
        self.source = source
        self.records = records
        self.scan = scan
        self.splits_file = splits_file

    def __len__(self) -> int:
        return len(self.records)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of `Keyframe.cameras`."""
        return cameras_of(self.records.dtype)

    @property
    def tokens(self) -> list[str]:
        """The sample tokens of all keyframes, in order."""
        return self.keyframes("all").tokens

    @property
    def scenes(self) -> list[str]:
        """The scene name of each of `tokens`."""
        return [scene.decode() for scene in self.records["scene"]]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have keyframes here, without "all"."""
        return sorted({name for names in np.unique(self.records["splits"]) for name in names.decode().split()})

    def keyframes(self, split: str) -> Keyframes:
        """The keyframes of a split that are present here; "all" is every keyframe.

        Raises:
            InputError: there is no such split, or none of its scenes is here.
        """
        if split == "all":
            return self._select(np.arange(len(self)))
        if split not in self.splits:
            raise InputError(
                f"split {split!r} has no scenes in {self.source}: use one of {', '.join([*self.splits, 'all'])}, or "
                f"list names of scenes, such as {self.scenes[0]}, under it in {self.splits_file}"
            )
        # Few distinct values: decide per value, not per keyframe.
        with_split = [names for names in np.unique(self.records["splits"]) if split in names.decode().split()]
        return self._select(np.flatnonzero(np.isin(self.records["splits"], with_split)))

    def keyframe(self, token: str) -> Keyframe:
        """The keyframe with this sample token; see `select`."""
        return self.select([token])[0]

    def select(self, tokens: Sequence[str]) -> Keyframes:
        """The keyframes with these sample tokens, in the order given.

        Raises:
            InputError: there is none with one of them.
        """
        rows = {token: row for row, token in enumerate(self.tokens)}
        for token in tokens:
            if token not in rows:
                raise InputError(f"no keyframe {token!r} in {self.source}: the token must be a sample token")
        return self._select(np.array([rows[token] for token in tokens], dtype=np.intp))

    def before(self, token: str, n: int) -> Keyframes:
        """Up to n keyframes before this one in its scene, the nearest first: fewer at the start of the scene.

        Raises:
            InputError: there is no keyframe with this sample token.
        """
        (row,) = self.select([token])._rows.tolist()
        return self._select(np.array(self.past(row, n), dtype=np.intp))

    def sweeps(self, token: str, channel: str, n: int) -> list[Sweep]:
        """Up to n sweeps of a camera or LIDAR_TOP before a keyframe in its scene, the nearest first.

        Before: by its timestamp. Where n goes beyond the keyframe before it, that one's own image or scan is not among
        them, for it is no sweep. The first time, the tables are read for them, and the result is cached.

        Raises:
            InputError: there is no such keyframe or channel, a table is broken, or the data are not nuScenes.
        """
        return self.select([token]).sweeps(0, channel, n)

    def at(self, row: int) -> Keyframe:
        """The keyframe in a row of the index."""
        record = self.records[row]
        return Keyframe(
            token=record["token"].decode(),
            scene=record["scene"].decode(),
            timestamp=int(record["timestamp"]),
            previous=self._neighbour(row, -1),
            next=self._neighbour(row, +1),
            cameras=tuple(self._camera(channel, record["cameras"][channel]) for channel in self.channels),
            lidar_path=self._file(record["lidar_path"]),
            scan=self.scan,
            lidar2ego=None if np.isnan(record["lidar2ego"]).any() else np.array(record["lidar2ego"]),
            ego2global=np.array(record["ego2global"]),
            labels=self._file(record["labels"]),
        )

    def past(self, row: int, n: int) -> range:
        """Rows of up to n keyframes before the one in a row, in its scene, the nearest first."""
        scenes, first = self.records["scene"], row
        while first > max(0, row - n) and scenes[first - 1] == scenes[row]:
            first -= 1
        return range(row - 1, first - 1, -1)

    def future(self, row: int, n: int) -> range:
        """Rows of up to n keyframes behind the one in a row, in its scene, the nearest first."""
        scenes, last = self.records["scene"], row
        while last < min(len(scenes) - 1, row + n) and scenes[last + 1] == scenes[row]:
            last += 1
        return range(row + 1, last + 1)

    def lidarseg(self) -> PointClasses:
        """The classes of LiDAR points. The first time, the tables are read for them, and the result is cached.

        Raises:
            InputError: nuScenes-lidarseg is not there, a table is broken, or the data are not nuScenes.
        """
        raise self._only_of_nuscenes("classes of LiDAR points (nuScenes-lidarseg): set objective=default")

    def sweeps_before(self, row: int, channel: str, n: int) -> list[Sweep]:
        """Up to n sweeps of a channel before the keyframe in a row; see `sweeps`."""
        raise self._only_of_nuscenes("sweeps between keyframes")

    def _only_of_nuscenes(self, what: str) -> InputError:
        return InputError(f"{self.source}: only the nuScenes devkit's tables (data=nuscenes) know {what}")

    def _select(self, rows: np.ndarray) -> Keyframes:
        return Keyframes(self, rows)

    def _neighbour(self, row: int, step: int) -> str:
        other = row + step
        if not 0 <= other < len(self.records) or self.records["scene"][other] != self.records["scene"][row]:
            return ""
        return self.records["token"][other].decode()

    def _camera(self, channel: str, record: np.void) -> Camera:
        return Camera(
            channel=channel,
            path=self._file(record["path"]),
            width=int(record["width"]),
            height=int(record["height"]),
            intrinsics=np.array(record["intrinsics"]),
            cam2ego=np.array(record["cam2ego"]),
            ego2global=np.array(record["ego2global"]),
        )

    def _file(self, name: bytes) -> Path | None:
        return self.root / os.fsdecode(name) if name else None  # names the same bytes in a locale of another encoding


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
