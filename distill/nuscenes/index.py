"""The keyframes of a nuScenes dataroot, and a compact index of them that is read from the devkit's tables only once.

The index is one numpy record array, one record per keyframe, mapped from disk: it opens at once whatever its size, and
loader workers and ranks share its pages. `Keyframe` objects are made on access.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from distill.errors import InputError
from distill.nuscenes.layout import CAMERAS, LIDAR_COLUMNS, SHORT_NAMES, check_version

# Part of the cache key: raise it whenever the meaning or layout of the records changes.
_FORMAT = 3


@dataclass(frozen=True)
class Camera:
    """One camera image of a keyframe, as calibrated.

    A camera that the keyframe lacks has no image and a calibration under which it sees nothing of the world: far above
    the ego frame, looking up.

    Attributes:
        channel: one of `CAMERAS`.
        path: the image file; None: the keyframe lacks this camera.
        width, height: its size in pixels.
        intrinsics: camera frame to pixels, float64 (3, 3).
        cam2ego: camera frame to the ego frame at the camera's time, float64 (4, 4).
        ego2global: ego frame at the camera's time to the map, float64 (4, 4).
    """

    channel: str
    path: Path | None
    width: int
    height: int
    intrinsics: np.ndarray
    cam2ego: np.ndarray
    ego2global: np.ndarray

    @property
    def present(self) -> bool:
        """Whether the keyframe has an image of this camera."""
        return self.path is not None


@dataclass(frozen=True)
class Keyframe:
    """One annotated nuScenes sample; its ego frame is the ego pose at LiDAR time (Occ3D's frame, docs/formulas.md 1.2).

    Attributes:
        token: sample token, the identity of the keyframe everywhere.
        scene: scene name, for example "scene-0061".
        timestamp: microseconds.
        previous, next: tokens of the neighbours in time within the scene, "" at its ends.
        cameras: in `CAMERAS` order.
        lidar_path: the LIDAR_TOP scan.
        lidar_columns: float32 per point in it: x, y, z, intensity and whatever follows.
        lidar2ego: LIDAR_TOP to ego frame, float64 (4, 4).
        ego2global: ego frame to the map, float64 (4, 4).
    """

    token: str
    scene: str
    timestamp: int
    previous: str
    next: str
    cameras: tuple[Camera, ...]
    lidar_path: Path
    lidar_columns: int
    lidar2ego: np.ndarray
    ego2global: np.ndarray

    def cam2ego(self) -> np.ndarray:
        """Camera frames, each at its own time, to this keyframe's ego frame: float64 (6, 4, 4).

        The ego motion between camera and LiDAR time is included.
        """
        global2ego = np.linalg.inv(self.ego2global)
        return np.stack([global2ego @ camera.ego2global @ camera.cam2ego for camera in self.cameras])


class Keyframes(Sequence[Keyframe]):
    """Some keyframes of an index, in its order; `Keyframe` objects are made on access."""

    def __init__(self, root: Path, lidar_columns: int, records: np.ndarray, rows: np.ndarray):
        self.root = root
        self.lidar_columns = lidar_columns
        self._records = records  # of the whole index: the neighbours of a keyframe need not be in the selection
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, item: int) -> Keyframe: ...
    @overload
    def __getitem__(self, item: slice) -> Keyframes: ...
    def __getitem__(self, item: int | slice) -> Keyframe | Keyframes:
        if isinstance(item, slice):
            return self._with(self._rows[item])
        return self._keyframe(int(self._rows[item]))

    @property
    def tokens(self) -> list[str]:
        """Sample tokens, in order."""
        return [token.decode() for token in self._records["token"][self._rows]]

    @property
    def absent_cameras(self) -> dict[str, int]:
        """How many of the keyframes lack a camera, for each channel that is not in all of them."""
        absent = (self._records["cameras"]["path"][self._rows] == b"").sum(0).tolist()
        return {channel: count for channel, count in zip(CAMERAS, absent, strict=True) if count}

    def where(self, chosen: Sequence[bool]) -> Keyframes:
        """The keyframes that are chosen, in order; `chosen` has one entry for each of them."""
        return self._with(self._rows[np.array(chosen, dtype=bool)])

    def _with(self, rows: np.ndarray) -> Keyframes:
        return Keyframes(self.root, self.lidar_columns, self._records, rows)

    def _keyframe(self, row: int) -> Keyframe:
        record = self._records[row]
        token, scene = record["token"].decode(), record["scene"].decode()
        return Keyframe(
            token=token,
            scene=scene,
            timestamp=int(record["timestamp"]),
            previous=self._neighbour(row, -1),
            next=self._neighbour(row, +1),
            cameras=tuple(
                Camera(
                    channel=channel,
                    path=self._file(camera["path"]) if camera["path"] else None,
                    width=int(camera["width"]),
                    height=int(camera["height"]),
                    intrinsics=np.array(camera["intrinsics"]),
                    cam2ego=np.array(camera["cam2ego"]),
                    ego2global=np.array(camera["ego2global"]),
                )
                for channel, camera in zip(CAMERAS, record["cameras"], strict=True)
            ),
            lidar_path=self._file(record["lidar_path"]),
            lidar_columns=self.lidar_columns,
            lidar2ego=np.array(record["lidar2ego"]),
            ego2global=np.array(record["ego2global"]),
        )

    def _file(self, name: bytes) -> Path:
        return self.root / os.fsdecode(name)  # names the same bytes in a locale of another encoding

    def _neighbour(self, row: int, step: int) -> str:
        other = row + step
        if not 0 <= other < len(self._records) or self._records["scene"][other] != self._records["scene"][row]:
            return ""
        return self._records["token"][other].decode()


class NuScenesIndex:
    """All keyframes of one version of a dataroot, ordered by scene name and, within a scene, by time.

    Args:
        root: dataroot.
        version: of its tables.
        records: see `distill.nuscenes.tables.read_tables`.
        lidar_columns: float32 per point in its scans.
    """

    def __init__(self, root: Path, version: str, records: np.ndarray, lidar_columns: int = LIDAR_COLUMNS):
        self.root = root
        self.version = version
        self.lidar_columns = lidar_columns
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @property
    def tokens(self) -> list[str]:
        """The sample tokens of all keyframes, in order."""
        return self.keyframes("all").tokens

    @property
    def scenes(self) -> list[str]:
        """The scene name of each of `tokens`."""
        return [scene.decode() for scene in self._records["scene"]]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have keyframes here, without "all"."""
        return sorted({name for names in np.unique(self._records["splits"]) for name in names.decode().split()})

    def keyframes(self, split: str) -> Keyframes:
        """The keyframes of a split that are present here; "all" is every keyframe.

        Args:
            split: a name from `<version>/splits.json` if the dataroot has one, otherwise a nuscenes-devkit split of
                this version (train, val, train_detect, train_track; mini_train, mini_val; test), or "all".
                v1.0-mini's own "train" and "val" are mini_train and mini_val.

        Raises:
            InputError: there is no such split, or none of its scenes is here.
        """
        if split not in self.splits:  # a splits.json may have some of these names itself
            split = SHORT_NAMES.get((self.version, split), split)
        if split == "all":
            return self._select(np.arange(len(self)))
        if split not in self.splits:
            raise InputError(
                f"split {split!r} has no scenes in {self.root / self.version}: use one of "
                f"{', '.join([*self.splits, 'all'])}, or list names of scenes, such as {self.scenes[0]}, under it in "
                "splits.json"
            )
        # Few distinct values: decide per value, not per keyframe.
        with_split = [names for names in np.unique(self._records["splits"]) if split in names.decode().split()]
        return self._select(np.flatnonzero(np.isin(self._records["splits"], with_split)))

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
                raise InputError(
                    f"no keyframe {token!r} in {self.root / self.version}: the token must be a sample token"
                )
        return self._select(np.array([rows[token] for token in tokens], dtype=np.intp))

    def _select(self, rows: np.ndarray) -> Keyframes:
        return Keyframes(self.root, self.lidar_columns, self._records, rows)


def load_index(root: Path, version: str, cache_dir: Path, lidar_columns: int = LIDAR_COLUMNS) -> NuScenesIndex:
    """Open a nuScenes dataroot; the first time, its tables are read and the result is cached.

    The cache file is named by a hash of the dataroot's path, the version and the name, size and modification time of
    every table, so a changed dataroot is read anew.

    Args:
        root: dataroot holding `<version>/*.json`, samples/ and, for labels, gts/.
        version: "v1.0-trainval", "v1.0-test", "v1.0-mini", or another one with a splits.json among its tables.
        cache_dir: folder for the index, made if absent.
        lidar_columns: float32 per point in the scans of this dataroot.

    Raises:
        InputError: a missing dataroot or version, a table that is broken or holds what is no calibration or pose, a
            keyframe without LIDAR_TOP or without any camera, or a cache_dir that cannot be used.
    """
    root, cache_dir = Path(root), Path(cache_dir)
    cached = cache_dir / f"{version}-{_fingerprint(root, version)}.npy"
    try:
        if not cached.exists():
            _make_cache(cached, root, version)
        records = _open_cache(cached)
    except OSError as error:
        raise InputError(
            f"cannot keep the index of keyframes in {cache_dir} ({error}): choose another folder with data.cache_dir= "
            "or the environment variable OCC_DISTILL_CACHE"
        ) from error
    return NuScenesIndex(root, version, records, lidar_columns)


def _open_cache(cached: Path) -> np.ndarray:
    try:
        return np.load(cached, mmap_mode="r").view(np.ndarray)  # memmap objects are slow to index
    except (ValueError, EOFError) as error:
        raise InputError(f"{cached}: not an index of keyframes any more ({error}): delete this file") from error


def _fingerprint(root: Path, version: str) -> str:
    check_version(root, version)
    tables = sorted((root / version).glob("*.json"))
    state = [(table.name, table.stat().st_size, table.stat().st_mtime_ns) for table in tables]
    description = json.dumps([_FORMAT, str(root.resolve()), version, state])
    return hashlib.sha256(description.encode()).hexdigest()[:16]


def _make_cache(cached: Path, root: Path, version: str) -> None:
    """Read the tables into `cached`, in one process per machine, so that the file is complete or absent."""
    from distill.nuscenes.tables import Tables, read_tables  # only the first reading needs it

    cached.parent.mkdir(parents=True, exist_ok=True)
    with open(cached.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ranks started together: one reads gigabytes of tables, the others wait
        if cached.exists():
            return
        print(f"reading the nuScenes tables of {root / version}, once (minutes for v1.0-trainval)", file=sys.stderr)
        records = read_tables(Tables(root, version))
        with open(cached.with_suffix(".tmp"), "wb") as file:
            np.save(file, records)
            os.fsync(file.fileno())
        os.replace(file.name, cached)
