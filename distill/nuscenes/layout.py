"""What nuScenes calls its sensors and its versions."""

from __future__ import annotations

from pathlib import Path

from distill.errors import InputError

# of nuScenes' own rig, in our order; the cameras of a dataroot are `NuScenesIndex.channels`
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"
LIDAR_COLUMNS = 5  # of nuScenes' own scans: x, y, z, intensity, ring index

# what a version calls its own training and validation split
SHORT_NAMES = {("v1.0-mini", "train"): "mini_train", ("v1.0-mini", "val"): "mini_val"}


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
