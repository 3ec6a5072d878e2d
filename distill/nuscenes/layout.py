"""What nuScenes calls its sensors and its versions, and what stands in LiDAR files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import InputError

# of nuScenes' own rig, in our order; the cameras of data are `KeyframeIndex.channels`
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"
LIDAR_COLUMNS = 5  # of nuScenes' own scans: x, y, z, intensity, ring index

_UPSTREAM = tuple(f"CAM_{place}" for place in ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT"))

# what a version calls its own training and validation split
SHORT_NAMES = {("v1.0-mini", "train"): "mini_train", ("v1.0-mini", "val"): "mini_val"}


def rig_order(channels: Collection[str]) -> tuple[str, ...]:
    """The cameras of a dataroot in order.

    `CAMERAS`, if there are no others, whether or not all of these are here; otherwise those that are here: first those
    in `CAMERAS`, in that order, then the others by name.
    """
    own = sorted({*channels} - {*CAMERAS})
    return (*(channel for channel in CAMERAS if channel in channels), *own) if own else CAMERAS


def upstream_order(channels: Sequence[str]) -> list[int]:
    """Positions of cameras in the order in which mmdet3d's infos, and networks trained on them, list nuScenes'.

    Those that nuScenes does not have come last, in the order given.
    """
    return sorted(range(len(channels)), key=lambda n: (*_UPSTREAM, channels[n]).index(channels[n]))


@dataclass(frozen=True)
class ScanFormat:
    """What stands in LiDAR files: a row of numbers for each point.

    Attributes:
        columns: names of these numbers; x, y and z, metres, are among them, and intensity where it was measured.
        brightest: the highest intensity that there is.
        option: the value of the configuration that says how many columns there are; "": data say it themselves.
    """

    columns: tuple[str, ...]
    brightest: float
    option: str = ""


def nuscenes_scans(columns: int) -> ScanFormat:
    """nuScenes' own scans, of so many float32 per point: x, y, z, intensity and whatever follows."""
    further = (f"column {number}" for number in range(4, columns))
    return ScanFormat(("x", "y", "z", "intensity", *further), 255.0, "data.lidar_columns")


def check_version(root: Path, version: str) -> None:
    """Raise InputError unless `root` is a folder with this version's tables, naming the versions there are."""
    try:
        is_folder = root.is_dir()
        has_version = is_folder and (root / version / "sample.json").is_file()
        versions = sorted(table.parent.name for table in root.glob("*/sample.json")) if not has_version else []
    except OSError as error:
        raise InputError(f"{root / version}: cannot be read ({error.strerror}): see to its permissions") from error
    if not is_folder:
        raise InputError(f"no nuScenes dataroot at {root}: no such folder")
    if not has_version:
        raise InputError(
            f"no nuScenes version {version!r} in {root} (a folder with sample.json): "
            f"it has {', '.join(versions) or 'no version at all'}"
        )
