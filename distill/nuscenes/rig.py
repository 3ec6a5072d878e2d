"""Your own rig: an index of frames in JSON or JSON lines, whose format is `rig_format.RigIndex` (docs/own_data.md).

A `.json` file holds one `RigIndex`. A `.jsonl` file holds it without its frames in the first line, and a frame in each
line that follows. Both are read whole, and every fault is told with its place; `check_index` lists them all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from distill.errors import InputError
from distill.nuscenes.cache import cached, file_cache
from distill.nuscenes.index import KeyframeIndex
from distill.nuscenes.layout import LIDAR, ScanFormat
from distill.nuscenes.records import (
    CameraEntry,
    KeyframeEntry,
    camera2keyframe,
    fits_image,
    misplaced,
    records_of,
    same_times,
)
from distill.nuscenes.rig_format import Calibration, RigFrame, RigHeader

_RESERVED = (LIDAR, "calibration", "labels")  # what digests of keyframes are of, besides cameras


@dataclass
class Reading:
    """What was read of an index.

    Attributes:
        file: of the index.
        header: None: it is faulty.
        frames: those without a fault in themselves, with their places.
        faults: places and what is wrong there.
    """

    file: Path
    header: RigHeader | None = None
    frames: list[tuple[str, RigFrame]] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


M = TypeVar("M", bound=BaseModel)


def load_rig(file: Path, root: Path | None, cache_dir: Path) -> KeyframeIndex:
    """Open an index of one's own; the first time, it is read and checked, and the result is cached.

    Args:
        file: `.json` or `.jsonl`.
        root: what paths in it are relative to; None: its folder.
        cache_dir: folder for what is kept of it, made if absent.

    Raises:
        InputError: it is missing or faulty.
    """
    if not file.is_file():
        raise InputError(f"no index of frames at {file}: say where it is with data.index=")

    def read() -> np.ndarray:
        reading = read_rig(file)
        entries = entries_of(reading)
        if reading.faults:
            place, fault = reading.faults[0]
            more = f"; {len(reading.faults) - 1} more" if len(reading.faults) > 1 else ""
            raise InputError(
                f"{file}: {place}: {fault}{more} (python -m distill.nuscenes.check_index {file} lists all)"
            )
        assert reading.header is not None
        return records_of(list(entries.values()), cameras_of_rig(reading), reading.header.splits)

    cache = file_cache(file, cache_dir)
    records = cached(cache, read, f"reading {file}, once")
    lidar = cached(cache.with_name(f"{cache.stem}-lidar.npy"), lambda: _lidar(file), "reading its header, once")
    columns, brightest = lidar["columns"][0].split(), float(lidar["brightest"][0])
    return KeyframeIndex(
        root or file.parent, file, records, ScanFormat(tuple(columns), brightest), f"the `splits` of {file.name}"
    )


def _lidar(file: Path) -> np.ndarray:
    """What stands in the scans of a faultless index, one record."""
    header, _ = _parts(file, [])
    lidar = RigHeader.model_validate(header).lidar
    columns, brightest = ([], 1.0) if lidar is None else (lidar.columns, lidar.intensity_max)
    text = " ".join(columns)
    return np.array([(text, brightest)], [("columns", f"U{len(text) or 1}"), ("brightest", "<f8")])


def read_rig(file: Path) -> Reading:
    """Read an index, whatever is wrong with it; faults that lie between frames are found by `entries_of`."""
    reading = Reading(file)
    header, frames = _parts(file, reading.faults)
    if header is not None:
        reading.header = _validated(RigHeader, header, "line 1" if _in_lines(file) else "header", reading.faults)
    for place, frame in frames:
        valid = _validated(RigFrame, frame, place, reading.faults)
        if valid is not None:
            reading.frames.append((place, valid))
    if not frames and not reading.faults:
        reading.faults.append(("frames", "there is none"))
    return reading


def entries_of(reading: Reading) -> dict[str, KeyframeEntry]:
    """Place -> the keyframe there, for those that are whole; what is wrong between frames is added to the faults."""
    if reading.header is None:
        return {}
    entries = {}
    for place, frame in reading.frames:
        cameras = dict(_cameras(reading, place, frame))
        lidar, scan = reading.header.lidar, frame.lidar
        if scan is not None and lidar is None:
            reading.faults.append((place, "lidar: the header says nothing of scans: add lidar to it"))
            continue
        if len(cameras) == len(frame.cameras):
            pose = (scan and scan.lidar2ego) or (lidar and lidar.lidar2ego)
            entries[place] = KeyframeEntry(
                token=frame.token,
                scene=frame.scene,
                timestamp=frame.timestamp,
                ego2global=np.array(frame.ego2global),
                cameras=cameras,
                lidar_path=scan.path if scan else "",
                lidar2ego=np.array(pose) if pose else None,
                labels=frame.labels or "",
            )
    reading.faults.extend(_between(reading, entries))
    return entries


def cameras_of_rig(reading: Reading) -> tuple[str, ...]:
    """Names of the cameras of all frames, in the order of the header and then of the frames."""
    assert reading.header is not None
    used = {name: None for _, frame in reading.frames for name in frame.cameras}
    return tuple(dict.fromkeys([*(name for name in reading.header.cameras if name in used), *used]))


def _in_lines(file: Path) -> bool:
    return file.suffix == ".jsonl"


def _parts(file: Path, faults: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, Any]]]:
    """The header, and frames with their places."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}): save it as UTF-8") from error
    if _in_lines(file):
        lines = [(f"line {n}", line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
        parsed = [(place, _parsed(line, place, faults)) for place, line in lines]
        header = parsed[0][1] if parsed else None
        if not parsed:
            faults.append(("line 1", "the file is empty: its first line is the header"))
        return header, [(place, frame) for place, frame in parsed[1:] if frame is not None]
    whole = _parsed(text, "", faults)
    if whole is None:
        return None, []
    if not isinstance(whole, dict) or not isinstance(whole.get("frames"), list):
        faults.append(("frames", "should be a list of frames, in one mapping with the header"))
        return None, []
    header = {key: value for key, value in whole.items() if key != "frames"}
    return header, [(f"frames[{n}]", frame) for n, frame in enumerate(whole["frames"])]


def _parsed(text: str, place: str, faults: list[tuple[str, str]]) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = place or f"line {error.lineno}"
        faults.append((where, f"not valid JSON ({error.msg}, column {error.colno})"))
        return None


def _validated(kind: type[M], value: Any, place: str, faults: list[tuple[str, str]]) -> M | None:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults += [(place, _worded(dict(each))) for each in error.errors()]
        return None


def _worded(error: Mapping[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    said = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if error["type"] == "missing":
        said = "it must be given"
    elif error["type"] == "extra_forbidden":
        said = "there is no such value"
    elif "string_pattern" in error["type"]:
        said = "should be a plain name, without / and not beginning with a blank"
    given = json.dumps(error["input"], default=str)
    shown = "" if error["type"] == "missing" or len(given) > 80 else f" (it is {given})"
    return f"{where}: {said}{shown}" if where else f"{said}{shown}"


def _cameras(reading: Reading, place: str, frame: RigFrame) -> Iterator[tuple[str, CameraEntry]]:
    """Those of a frame that are whole; what is wrong with the others is added to the faults."""
    assert reading.header is not None
    for name, camera in frame.cameras.items():
        shared = reading.header.cameras.get(name, Calibration())
        known = {**shared.model_dump(exclude_none=True), **camera.model_dump(exclude_none=True, exclude_unset=True)}
        fault = _fault_of_camera(name, known)
        if fault is None:
            pose = np.array(frame.ego2global)
            then = np.array(known["ego2global"]) if "ego2global" in known else pose
            intrinsics, cam2ego = np.array(known["intrinsics"]), np.array(known["cam2ego"])
            entry = CameraEntry(camera.path, known["width"], known["height"], intrinsics, cam2ego, then)
            where = misplaced(camera2keyframe(entry, pose))
            fault = (
                where and f"it is {where} by cam2ego and ego2global: correct them (metres, the pose of the same moment)"
            )
        if fault is None:
            yield name, entry
        else:
            reading.faults.append((place, f"cameras.{name}: {fault}"))


def _fault_of_camera(name: str, known: Mapping[str, Any]) -> str | None:
    """What is wrong with a camera by what the header and the frame say of it together."""
    if name in _RESERVED:
        return "this name is taken: call the camera otherwise"
    lacking = [key for key in ("width", "height", "intrinsics", "cam2ego") if key not in known]
    if lacking:
        return f"neither the header nor the frame says its {', '.join(lacking)}"
    if not fits_image(np.array(known["intrinsics"]), (known["width"], known["height"])):
        return f"intrinsics are not of an image of {known['width']}x{known['height']} pixels: {known['intrinsics']}"
    return None


def _between(reading: Reading, entries: Mapping[str, KeyframeEntry]) -> Iterator[tuple[str, str]]:
    """What is wrong between frames that are right in themselves."""
    assert reading.header is not None
    place_of: dict[str, str] = {}
    for place, frame in reading.frames:
        if frame.token in place_of:
            yield place, f"token: {frame.token} is that of {place_of[frame.token]}, too: each frame has its own"
        place_of.setdefault(frame.token, place)
    for one, other in same_times(list(entries.values())):
        if one.token != other.token:
            yield (
                place_of[other.token],
                f"timestamp: {place_of[one.token]} is of the same scene ({one.scene}) and time ({one.timestamp})",
            )
    scenes = Counter(frame.scene for _, frame in reading.frames)
    for split, names in reading.header.splits.items():
        for name in names:
            if name not in scenes:
                yield "line 1" if _in_lines(reading.file) else "header", f"splits.{split}: no frame is of scene {name}"
