"""Voxel labels of keyframes: Occ3D-nuScenes (docs/formulas.md 1.2, 2.2), SurroundOcc (2.3) and OpenOcc v2 (2.5).

The labels of a keyframe are a dict of arrays on the grid X, Y, Z: `semantics` uint8; `mask_camera` and `mask_lidar`
bool, True = observed by the cameras, by the accumulated LiDAR.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES, ClassSet
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.nuscenes.keyframe import Keyframe

# the classes of OpenOcc v2 in its order (docs/formulas.md 2.5), and the ids of Occ3D's
_OPENOCC = (
    *("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone"),
    *("barrier", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation", "free"),
)
_FROM_OPENOCC = np.array([OCC3D_CLASSES.names.index(name) for name in _OPENOCC], np.uint8)
_PRIOR_FROM, _PRIOR_ABOVE = 200, 0.2  # of how many keyframes the mean is taken, and which voxels are seen as a rule
# what NumPy raises for files that are damaged, encrypted or none of its own
_UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, MemoryError, SyntaxError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


class LabelSource(Protocol):
    """Where the labels on one grid are read from."""

    @property
    def grid(self) -> VoxelGrid:
        """Where the labels lie."""
        ...

    def path(self, keyframe: Keyframe) -> Path | None:
        """The file with the labels of a keyframe, if it has any; None: it is known to have none."""
        ...

    def read(self, keyframe: Keyframe) -> dict[str, np.ndarray] | None:
        """The labels of a keyframe, None if it has none.

        Raises:
            InputError: its file is damaged, holds something of the wrong shape, type or value, or class ids of another
                convention.
        """
        ...

    def unlabelled(self) -> dict[str, np.ndarray]:
        """What stands for the labels of a keyframe without any: everything free, nothing observed."""
        ...


class Occ3DLabels:
    """`<root>/<scene>/<sample token>/labels.npz` on the `OCC3D` grid, a `LabelSource`.

    Further arrays in a file, such as the instances of panoptic labels, are not looked at.

    Args:
        root: the folder `gts`, whatever it is called; None: files lie where the index of keyframes says.
    """

    grid = OCC3D
    _kind = "Occ3D"
    # array name -> highest value it may hold
    _highest: ClassVar[dict[str, int]] = {"semantics": len(OCC3D_CLASSES) - 1, "mask_camera": 1, "mask_lidar": 1}

    def __init__(self, root: Path | None) -> None:
        self.root = root

    def read(self, keyframe: Keyframe) -> dict[str, np.ndarray] | None:
        """The labels of a keyframe, None if it has no file."""
        path = self.path(keyframe)
        if path is None or not path.exists():
            return None
        try:
            file = np.load(path, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: a single array, not an archive: not {self._kind} labels")
            with file:
                labels = {name: self._checked(path, name, file) for name in self._highest}
        except _UNREADABLE as error:
            raise InputError(f"{path}: cannot be read as {self._kind} labels ({error}): download it again") from error
        return self._meant(path, labels)

    def _meant(self, path: Path, labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of a file in the conventions of this project."""
        _check_convention(path, labels["semantics"], OCC3D_CLASSES)
        return {name: array if name == "semantics" else array.astype(bool) for name, array in labels.items()}

    def unlabelled(self) -> dict[str, np.ndarray]:
        """Everything free, nothing observed."""
        return _unobserved(self.grid, OCC3D_CLASSES.free)

    def path(self, keyframe: Keyframe) -> Path | None:
        """Where the file of a keyframe is, if it has one; None: the index was asked, and names none."""
        if self.root is None:
            return keyframe.labels
        # names the same bytes in a locale of another encoding
        return self.root / os.fsdecode(f"{keyframe.scene}/{keyframe.token}/labels.npz".encode())

    def _checked(self, path: Path, name: str, file: np.lib.npyio.NpzFile) -> np.ndarray:
        if name not in file.files:
            raise InputError(
                f"{path}: no array {name!r} (it has {', '.join(file.files) or 'none'}): not {self._kind} labels"
            )
        array = file[name]
        if not isinstance(array, np.ndarray):  # a file in an archive that NumPy did not write
            raise InputError(f"{path}: {name} is no array: not {self._kind} labels")
        dtypes = (np.uint8,) if name == "semantics" else (np.uint8, np.bool_)
        if array.shape != self.grid.shape or array.dtype not in dtypes:
            raise InputError(
                f"{path}: {name} is {array.dtype} {array.shape}, {self._kind} labels are uint8 {self.grid.shape}"
            )
        highest = self._highest[name]
        if array.max() > highest:
            raise InputError(f"{path}: {name} holds the value {array.max()}, the highest in {self._kind} is {highest}")
        return array


class OpenOccLabels(Occ3DLabels):
    """OpenOcc v2's `labels.npz` (docs/formulas.md 2.5), renumbered as Occ3D's classes, a `LabelSource`.

    Visibility is not known: both masks hold every voxel. No voxel is of class "others". Further arrays in a file, such
    as the flow, are not looked at.

    Args:
        root: the folder `openocc_v2`, whatever it is called; None: files lie where the index of keyframes says.
    """

    _kind = "OpenOcc v2"
    _highest: ClassVar[dict[str, int]] = {"semantics": len(_OPENOCC) - 1}

    def _meant(self, path: Path, labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        semantics = _FROM_OPENOCC[labels["semantics"]]
        if (misfit := OCC3D_CLASSES.misfit(semantics)) is not None:
            raise InputError(
                f"{path}: as OpenOcc's labels (free = 16), {misfit} Leave data.labels out if they are Occ3D's"
            )
        everywhere = np.ones(self.grid.shape, bool)
        return {"semantics": semantics, "mask_camera": everywhere, "mask_lidar": everywhere.copy()}


class SurroundOccLabels:
    """`<root>/samples/<LIDAR_TOP file>.npy` on the `SURROUNDOCC` grid, a `LabelSource`.

    A file lists the voxels that are not empty as rows x, y, z, class. Visibility is not known: both masks hold every
    voxel but those of class 0, noise.

    Args:
        root: the folder that holds `samples`; None: no keyframe has labels.

    Raises:
        InputError: there is no such folder.
    """

    grid = SURROUNDOCC

    def __init__(self, root: Path | None) -> None:
        if root is not None and not (root / "samples").is_dir():
            raise InputError(
                f"no SurroundOcc labels at {root / 'samples'}: no such folder; set data.surroundocc to the folder that "
                "holds `samples`, or to null to go on without labels"
            )
        self.root = root

    def read(self, keyframe: Keyframe) -> dict[str, np.ndarray] | None:
        """The labels of a keyframe, None if it has no file."""
        path = self.path(keyframe)
        if path is None or not path.exists():
            return None
        try:
            with open(path, "rb") as file:
                rows = np.lib.format.read_array(file, allow_pickle=False)
        except _UNREADABLE as error:
            raise InputError(f"{path}: cannot be read as SurroundOcc labels ({error}): download it again") from error
        _check_rows(path, rows)
        x, y, z, classes = rows.astype(np.int64).T
        semantics = np.full(self.grid.shape, SURROUNDOCC_CLASSES.free, dtype=np.uint8)
        semantics[x, y, z] = classes
        _check_convention(path, semantics, SURROUNDOCC_CLASSES)
        labelled = semantics != SURROUNDOCC_CLASSES.ignored
        return {"semantics": semantics, "mask_camera": labelled, "mask_lidar": labelled.copy()}

    def unlabelled(self) -> dict[str, np.ndarray]:
        """Everything free, nothing observed."""
        return _unobserved(self.grid, SURROUNDOCC_CLASSES.free)

    def path(self, keyframe: Keyframe) -> Path | None:
        """Where the file of a keyframe is, if it has one; None without a folder of labels, or without a LiDAR scan."""
        if self.root is None or keyframe.lidar_path is None:
            return None
        return self.root / "samples" / f"{keyframe.lidar_path.name}.npy"


class WithPrior:
    """`labels`, where those of keyframes without any hold what cameras see as a rule, a `LabelSource`.

    Args:
        labels: of all keyframes.
        mask_camera: of those without any, bool (X, Y, Z).
    """

    def __init__(self, labels: LabelSource, mask_camera: np.ndarray) -> None:
        self.labels, self.mask_camera = labels, mask_camera

    @property
    def grid(self) -> VoxelGrid:
        """Where the labels lie."""
        return self.labels.grid

    def path(self, keyframe: Keyframe) -> Path | None:
        """The file with the labels of a keyframe."""
        return self.labels.path(keyframe)

    def read(self, keyframe: Keyframe) -> dict[str, np.ndarray] | None:
        """The labels of a keyframe, None if it has none."""
        return self.labels.read(keyframe)

    def unlabelled(self) -> dict[str, np.ndarray]:
        """Everything free, and seen as a rule."""
        return {**self.labels.unlabelled(), "mask_camera": self.mask_camera}


def camera_prior(labels: LabelSource, keyframes: Sequence[Keyframe]) -> np.ndarray:
    """What cameras see as a rule (docs/formulas.md 4.9), bool (X, Y, Z).

    Args:
        labels: where those of the keyframes are read.
        keyframes: all that have labels; a few of them, evenly spaced, are read.

    Raises:
        InputError: there is none.
    """
    if not keyframes:
        raise InputError(
            "kd.unlabelled=prior is the mean mask_camera of training keyframes with labels, and none has any: set "
            "kd.unlabelled=seen or all"
        )
    chosen = np.linspace(0, len(keyframes) - 1, min(_PRIOR_FROM, len(keyframes))).round().astype(int)
    count_XYZ = np.zeros(labels.grid.shape, int)
    for index in chosen.tolist():
        found = labels.read(keyframes[index])
        assert found is not None
        count_XYZ += found["mask_camera"]
    return count_XYZ / len(chosen) > _PRIOR_ABOVE


def _unobserved(grid: VoxelGrid, free: int) -> dict[str, np.ndarray]:
    unseen = np.zeros(grid.shape, dtype=bool)
    return {"semantics": np.full(grid.shape, free, np.uint8), "mask_camera": unseen, "mask_lidar": unseen.copy()}


def _check_convention(path: Path, semantics: np.ndarray, classes: ClassSet) -> None:
    misfit = classes.misfit(semantics)
    if misfit is not None:
        raise InputError(
            f"{path}: {misfit} Labels of OpenOcc have 16 for free space (data.labels=openocc), others 0: renumber "
            f"them as {classes.name}"
        )


def _check_rows(path: Path, rows: np.ndarray) -> None:
    """Raise InputError unless these are rows x, y, z, class on the SurroundOcc grid."""
    if rows.ndim != 2 or rows.shape[1] != 4 or not len(rows) or rows.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: {rows.dtype} {rows.shape}, SurroundOcc labels are whole numbers (voxels, 4): x, y, z, class"
        )
    highest = np.array([*SURROUNDOCC.shape, len(SURROUNDOCC_CLASSES)]) - 1
    wrong = ~((rows >= 0) & (rows <= highest) & (rows == np.floor(rows))).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}: row {row} is {rows[row].tolist()}, SurroundOcc labels are whole numbers x, y, z, class from 0 to "
            f"{highest.tolist()}: download it again"
        )
