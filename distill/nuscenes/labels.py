"""Occ3D-nuScenes labels: semantics and visibility masks on the `OCC3D` grid (systems.md 0.1, 0.3)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D

# Array name in the file -> highest value it may hold.
_HIGHEST = {"semantics": len(OCC3D_CLASSES) - 1, "mask_camera": 1, "mask_lidar": 1}


def read_labels(path: Path) -> dict[str, np.ndarray] | None:
    """Read one `labels.npz`.

    Returns:
        semantics uint8 (X, Y, Z), mask_camera and mask_lidar bool (X, Y, Z), True = observed; None without the file.

    Raises:
        InputError: the file is damaged, or an array is missing or has the wrong shape, type or values.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = {name: _checked(path, name, file) for name in _HIGHEST}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as Occ3D labels ({error}): download it again") from error
    return {name: array if name == "semantics" else array.astype(bool) for name, array in labels.items()}


def no_labels() -> dict[str, np.ndarray]:
    """What stands for the labels of an unlabelled frame: everything free, nothing observed."""
    unseen = np.zeros(OCC3D.shape, dtype=bool)
    semantics = np.full(OCC3D.shape, OCC3D_CLASSES.free, dtype=np.uint8)
    return {"semantics": semantics, "mask_camera": unseen, "mask_lidar": unseen.copy()}


def _checked(path: Path, name: str, file: np.lib.npyio.NpzFile) -> np.ndarray:
    if name not in file.files:
        raise InputError(f"{path}: no array {name!r} (it has {', '.join(file.files) or 'none'}): not Occ3D labels")
    array = file[name]
    if array.shape != OCC3D.shape or array.dtype not in (np.uint8, np.bool_):
        raise InputError(f"{path}: {name} is {array.dtype} {array.shape}, Occ3D labels are uint8 {OCC3D.shape}")
    if array.max() > _HIGHEST[name]:
        raise InputError(f"{path}: {name} holds the value {array.max()}, the highest in Occ3D is {_HIGHEST[name]}")
    return array
