"""LiDAR files: rows of float32, NumPy arrays and point cloud files, and what of them is a scan.

Letter of array names: P points.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.errors import InputError
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.layout import LIDAR, ScanFormat

_WANTED = ("x", "y", "z", "intensity")
_FARTHEST = 1000.0  # metres; no scanner reaches so far: other units, or coordinates of a map
_MOST_COLUMNS = 16  # that are tried on a scan that does not fit


def read_scan(keyframe: Keyframe) -> np.ndarray:
    """The whole LIDAR_TOP scan: `.bin`, rows of float32; `.npy`, an array (points, columns); or `.pcd`.

    Returns:
        float32 (P, 4): x, y, z in metres in the keyframe's ego frame, intensity in [0, 1], 0 where it is not measured.

    Raises:
        InputError: there is none; the file is missing, empty, all zero, or not of the columns of `Keyframe.scan` with
            finite x, y, z and intensities; coordinates are not metres from the scanner, or intensities out of range.
    """
    path, lidar2ego = keyframe.lidar_path, keyframe.lidar2ego
    if path is None or lidar2ego is None:
        raise InputError(f"keyframe {keyframe.token} of scene {keyframe.scene} has no LiDAR scan: leave LiDAR out")
    named = f"{path}: LiDAR scan of keyframe {keyframe.token}"
    read = {".npy": _from_array, ".pcd": _from_pcd}.get(path.suffix, _from_rows)
    try:
        scan_P4 = read(path, keyframe.scan, named)
    except FileNotFoundError as error:
        raise InputError(f"{named} is missing") from error
    except OSError as error:
        raise InputError(f"{named} cannot be read ({error.strerror})") from error
    _check_units(scan_P4, keyframe.scan.brightest, named)
    points = np.empty((len(scan_P4), 4), dtype=np.float32)
    points[:, :3] = scan_P4[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    points[:, 3] = scan_P4[:, 3] / keyframe.scan.brightest
    return points


def _from_rows(path: Path, scan: ScanFormat, named: str) -> np.ndarray:
    """Rows of float32, whatever the file is called."""
    content = path.read_bytes()
    scan_P4 = _chosen(_rows(content, len(scan.columns)), scan)
    if not _plausible(scan_P4):
        raise InputError(f"{named} {_misfit(content, scan)}")
    return scan_P4


def _from_array(path: Path, scan: ScanFormat, named: str) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{named} is no .npy array ({error}): write it with numpy.save") from error
    if rows.ndim != 2 or rows.shape[1] != len(scan.columns) or rows.dtype.kind not in "iuf":
        raise InputError(
            f"{named} is {rows.dtype} {rows.shape}, not (points, {len(scan.columns)}): {', '.join(scan.columns)}"
        )
    return _checked(_chosen(rows, scan), named)


def _from_pcd(path: Path, scan: ScanFormat, named: str) -> np.ndarray:
    try:
        from pypcd4 import PointCloud
    except ImportError as error:
        raise InputError(f"{path}: reading .pcd takes pypcd4: pip install 'occ-distill[pcd]'") from error
    wanted = [name for name in _WANTED if name in scan.columns]
    try:
        cloud = PointCloud.from_path(path)
        if lacking := [name for name in wanted if name not in cloud.fields]:
            raise InputError(f"{named} has no {', '.join(lacking)} (it has {', '.join(cloud.fields)}): write them")
        rows = cloud.numpy(tuple(wanted))
    except (ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
        raise InputError(f"{named} cannot be read as .pcd ({error}): write it again") from error
    rows = rows[np.isfinite(rows[:, :3]).all(1)]  # an organised cloud writes nan where nothing came back
    return _checked(_chosen(rows, ScanFormat(tuple(wanted), scan.brightest)), named)


def _chosen(rows: np.ndarray, scan: ScanFormat) -> np.ndarray:
    """x, y, z and intensity of rows (P, columns), float32 (P, 4)."""
    scan_P4 = np.zeros((len(rows), 4), np.float32)
    for place, name in enumerate(_WANTED):
        if name in scan.columns:
            scan_P4[:, place] = rows[:, scan.columns.index(name)]
    return scan_P4


def _checked(scan_P4: np.ndarray, named: str) -> np.ndarray:
    if not _plausible(scan_P4):
        raise InputError(f"{named} holds no points with a finite x, y, z and an intensity >= 0 ({len(scan_P4)} rows)")
    return scan_P4


def _rows(content: bytes, columns: int) -> np.ndarray:
    """The file as float32 (P, columns), without rows if its length does not fit."""
    fits = len(content) % (4 * columns) == 0
    return np.frombuffer(content if fits else b"", dtype="<f4").reshape(-1, columns)


def _plausible(scan_P4: np.ndarray) -> bool:
    """Whether these are points: in rows of a wrong length, coordinates, some of them negative, are intensities."""
    finite = len(scan_P4) and np.isfinite(scan_P4).all()
    return bool(finite and (scan_P4[:, 3] >= 0).all() and scan_P4[:, :3].any())


def _check_units(scan_P4: np.ndarray, brightest: float, named: str) -> None:
    """Raise InputError where numbers mean something else than they are said to."""
    farthest, highest = np.abs(scan_P4[:, :3]).max(), scan_P4[:, 3].max()
    if farthest > _FARTHEST:
        raise InputError(
            f"{named} has a coordinate of {farthest:.6g} m: x, y, z should be metres from {LIDAR}, not millimetres or "
            "places on a map: convert it"
        )
    if highest > brightest:
        raise InputError(f"{named} has an intensity of {highest:.6g}: they should be 0 to {brightest:g}: scale them")


def _misfit(content: bytes, scan: ScanFormat) -> str:
    """What is wrong with rows that are not plausible, and what to do."""
    if not content:
        return "is empty (0 bytes): download it again, or leave this keyframe out"
    rows, columns = _rows(content, len(scan.columns)), len(scan.columns)
    if len(rows) and not _chosen(rows, scan)[:, :3].any():
        return f"holds nothing but points at 0, 0, 0 ({len(rows)}): download it again, or leave this keyframe out"
    expected = f"rows of {scan.option}={columns} float32 that begin with a finite x, y, z and an intensity >= 0"
    if not scan.option:
        expected = f"rows of float32 {', '.join(scan.columns)} (lidar.columns), finite, with an intensity >= 0"
    finite = np.isfinite(np.frombuffer(content[: len(content) // 4 * 4], "<f4")).all()
    for other in range(4, _MOST_COLUMNS + 1):
        # every second row of a scan with few bad points may be good
        if finite and other % columns and _plausible(_rows(content, other)[:, :4]):
            remedy = f"set {scan.option}={other}" if scan.option else "correct lidar.columns"
            return f"does not hold {expected}, but rows of {other}: {remedy}"
    return f"is damaged, not {expected} ({len(content)} bytes): download it again, or leave this keyframe out"
