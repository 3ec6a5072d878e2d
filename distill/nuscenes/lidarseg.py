"""Classes of LiDAR points, from nuScenes-lidarseg (Fong et al. 2022), whose tables name 32 categories."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.nuscenes.layout import LIDAR
from distill.nuscenes.records import longest
from distill.nuscenes.tables import Tables

# The 16 classes of the lidarseg challenge, which are those of Occ3D; every other category is 0, which says nothing.
_CLASSES = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}


class PointClasses:
    """The classes of the LiDAR points of keyframes.

    Args:
        root: dataroot.
        files: sample token -> file relative to it; empty: the keyframe has none.
        class_256: see `class_of_category`.
    """

    def __init__(self, root: Path, files: dict[str, bytes], class_256: np.ndarray) -> None:
        self.root, self.files, self.class_256 = root, files, class_256

    def path(self, token: str) -> Path | None:
        """The file of the keyframe with this sample token; None: the tables name none."""
        file = self.files[token]
        return self.root / os.fsdecode(file) if file else None

    def read(self, token: str, points: int) -> np.ndarray:
        """Class ids, uint8 (P,), in the order of the scan; 0 says nothing.

        Args:
            token: of the keyframe.
            points: how many its scan has.

        Raises:
            InputError: the file is missing, or is not of this scan.
        """
        path = self.path(token)
        try:
            found = b"" if path is None else path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: lidarseg labels of keyframe {token} cannot be read ({error.strerror}): download "
                "nuScenes-lidarseg again"
            ) from error
        if path is None or len(found) != points:
            raise InputError(
                f"{path or self.root / 'lidarseg'}: {len(found)} lidarseg labels of keyframe {token}, whose "
                f"scan has {points} points: download nuScenes-lidarseg again"
            )
        return self.class_256[np.frombuffer(found, np.uint8)]


def check_lidarseg(tables: Tables) -> None:
    """Raise InputError unless a version of a dataroot has lidarseg tables."""
    if not tables.file("lidarseg").exists():
        raise InputError(
            f"{tables.file('lidarseg')} is missing: what is rendered along rays is compared with nuScenes-lidarseg; "
            "unpack it into the dataroot, or set objective=default"
        )


def read_lidarseg(tables: Tables, keyframes: np.ndarray) -> np.ndarray:
    """The lidarseg file of each keyframe, relative to the root, bytes (K,); empty where there is none.

    Args:
        tables: of the dataroot.
        keyframes: see `distill.nuscenes.records.records_of`.

    Raises:
        InputError: a broken table.
    """
    of_sample: dict[str, str] = {}
    for record in tables.records("lidarseg").values():
        data = tables.linked(record, "sample_data")
        channel = tables.linked(tables.linked(data, "calibrated_sensor"), "sensor").text("channel")
        if channel == LIDAR and data.flag("is_key_frame"):
            of_sample[tables.linked(data, "sample").text("token")] = record.text("filename")
    files = [of_sample.get(token.decode(), "") for token in keyframes["token"]]
    return np.array([file.encode() for file in files], f"S{longest(files)}")


def class_of_category(tables: Tables) -> np.ndarray:
    """Class id by the index of a category in lidarseg files, uint8 (256,).

    Raises:
        InputError: category.json is the older one, without indices.
    """
    class_256 = np.zeros(256, np.uint8)
    for record in tables.records("category").values():
        index, name = record["index"], record.text("name")
        if type(index) is not int or not 0 <= index < len(class_256):
            raise record.fault("index", f"{index!r}, not a whole number from 0 to 255")
        if name in _CLASSES:
            class_256[index] = OCC3D_CLASSES.names.index(_CLASSES[name])
    return class_256
