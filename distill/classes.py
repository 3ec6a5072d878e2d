"""Class sets: names, colours, the free id and which classes are scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# of all voxels: a smaller share of free ones, or a larger one of a single other class, is no driving scene
_LEAST_FREE, _MOST_OCCUPIED = 0.01, 0.5


@dataclass(frozen=True)
class ClassSet:
    """The classes of a voxel label array; the id of a class is its position.

    Attributes:
        name: short name used in stores.
        names: class names, id order.
        colours: RGB 0-255 per class, id order (the colours of the nuScenes occupancy papers).
        free: id of empty space.
        ignored: the label that says nothing about its voxel; such voxels are neither trained on nor scored.
        scored: ids whose IoU is averaged to the mIoU.
        unlabelled_iou: percent that the convention gives a scored class without labels; None: its IoU, or nothing where
            it is not predicted either.
        convention: name of that mIoU; numbers of different conventions do not compare (docs/formulas.md 3.1).
        counted: in words, the voxels that are scored.
        frequencies: voxel counts over the training split, id order.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    free: int
    ignored: int
    scored: range
    unlabelled_iou: float | None
    convention: str
    counted: str
    frequencies: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def palette(self) -> np.ndarray:
        """Colours as uint8 (C, 3)."""
        return np.array(self.colours, dtype=np.uint8)

    def weights(self, balance: str | float) -> np.ndarray:
        """Class weights from the frequencies f, float32 (C,).

        Args:
            balance: "log", 1 / ln(f + 0.001), almost flat (FlashOcc; docs/formulas.md 2.4), or a power e in [0, 1]:
                1 / f^e, so that at 0 all classes count alike by the voxel, at 1 by the class.
        """
        frequencies = np.array(self.frequencies, dtype=np.float64)
        if isinstance(balance, str):
            return (1.0 / np.log(frequencies + 0.001)).astype(np.float32)
        return (frequencies**-balance).astype(np.float32)

    def misfit(self, ids_V: np.ndarray) -> str | None:
        """Why voxels of these class ids must be of another class set, in words; None where nothing says so.

        Ids of another convention have the right shape and range (free = 16 or 0 instead of 17). What gives them away is
        that space is mostly empty: of the voxels that cameras see, Occ3D's labels call 78 % free, single keyframes
        half of them (docs/formulas.md 2.2).

        Args:
            ids_V: uint8 in any shape: of a whole grid, or of its visible voxels; `ignored` is no voxel.
        """
        ids_V = ids_V[ids_V != self.ignored] if self.ignored >= len(self) else ids_V
        share_free = np.count_nonzero(ids_V == self.free) / max(1, ids_V.size)
        if share_free > 0.5 or not ids_V.size:
            return None
        share_C = np.bincount(ids_V.ravel(), minlength=len(self)) / ids_V.size
        most = int(share_C.argmax())
        if share_free >= _LEAST_FREE and (most == self.free or share_C[most] <= _MOST_OCCUPIED):
            return None
        name = self.names[most] if most < len(self) else "unknown"
        return (
            f"{share_free:.1%} of the voxels are free (class {self.free} of {self.name}), {share_C[most]:.0%} are "
            f"class {most} ({name}): class ids of another convention, with free space elsewhere?"
        )


_TABLE: tuple[tuple[str, tuple[int, int, int], int], ...] = (
    ("others", (110, 110, 110), 944004),
    ("barrier", (255, 120, 50), 1897170),
    ("bicycle", (255, 192, 203), 152386),
    ("bus", (255, 255, 0), 2391677),
    ("car", (0, 150, 245), 16957802),
    ("construction_vehicle", (0, 255, 255), 724139),
    ("motorcycle", (200, 180, 0), 189027),
    ("pedestrian", (255, 0, 0), 2074468),
    ("traffic_cone", (255, 240, 150), 413451),
    ("trailer", (135, 60, 0), 2384460),
    ("truck", (160, 32, 240), 5916653),
    ("driveable_surface", (255, 0, 255), 175883646),
    ("other_flat", (175, 0, 75), 4275424),
    ("sidewalk", (75, 0, 75), 51393615),
    ("terrain", (150, 240, 80), 61411620),
    ("manmade", (230, 230, 250), 105975596),
    ("vegetation", (0, 175, 0), 116424404),
    ("free", (255, 255, 255), 1892500630),
)

_NAMES, _COLOURS, _FREQUENCIES = (tuple(column) for column in zip(*_TABLE, strict=True))

# Occ3D-nuScenes; frequencies of the camera-visible voxels of the train split (docs/formulas.md 2.1).
OCC3D_CLASSES = ClassSet(
    name="occ3d",
    names=_NAMES,
    colours=_COLOURS,
    free=17,
    ignored=255,
    scored=range(17),
    unlabelled_iou=None,
    convention="Occ3D-17",
    counted="voxels of mask_camera",
    frequencies=_FREQUENCIES,
)
# SurroundOcc / GaussianFormer (docs/formulas.md 2.3). No voxel counts are published: those of Occ3D, the same drives,
# stand in.
SURROUNDOCC_CLASSES = ClassSet(
    name="surroundocc",
    names=("noise", *_NAMES[1:17], "empty"),
    colours=_COLOURS,
    free=17,
    ignored=0,
    scored=range(1, 17),
    unlabelled_iou=100.0,
    convention="SurroundOcc-16",
    counted="all voxels but those labelled noise",
    frequencies=_FREQUENCIES,
)
