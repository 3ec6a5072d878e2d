"""From the `data` node of a configuration to an index of keyframes, and to their labels."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.demo import ensure_world
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.nuscenes.challenge import ANNOTATIONS, load_challenge
from distill.nuscenes.index import KeyframeIndex, load_index
from distill.nuscenes.labels import LabelSource, Occ3DLabels, OpenOccLabels, SurroundOccLabels
from distill.nuscenes.rig import load_rig
from distill.teaching.labels import TeacherLabels


def open_dataroot(data: DictConfig) -> KeyframeIndex:
    """Open the keyframes that `data` describes; a demo world is made on first use.

    Args:
        data: a `data` config group: `layout`, `root`, `version`, `index`, `image_size`, `lidar_columns`, `cache_dir`,
            and `world` (a WorldConfig node or None).

    Raises:
        InputError: what describes the keyframes is missing or broken.
    """
    root, cache_dir = root_of(data), Path(data.cache_dir).expanduser()
    if data.world is not None:
        ensure_world(root, instantiate(data.world), workers=os.cpu_count() or 1)
    if not root.is_dir():
        raise InputError(f"no dataroot at {root}: no such folder; say where it is with data.root=")
    if data.layout == "rig":
        return load_rig(source_of(data), root, cache_dir)
    if data.layout == "challenge":
        return load_challenge(root, tuple(data.image_size), cache_dir)
    return load_index(root, data.version, cache_dir, data.lidar_columns)


def root_of(data: DictConfig) -> Path:
    """What paths of files are relative to: of one's own index its folder, unless `data.root` says otherwise."""
    return source_of(data).parent if data.root is None else Path(data.root).expanduser()


def source_of(data: DictConfig) -> Path:
    """The file or folder that describes the keyframes."""
    if data.layout == "rig":
        return Path(data.index).expanduser()
    return Path(data.root).expanduser() / (ANNOTATIONS if data.layout == "challenge" else data.version)


def open_labels(data: DictConfig, grid: VoxelGrid) -> LabelSource:
    """The labels on `grid` that belong to the keyframes.

    Args:
        data: a `data` config group: what `root_of` wants; `labels`, None (those that belong to the grid), "openocc",
            a teacher's store, or a node of a user's own `LabelSource`, built with `root` and `grid`; `labels_folder` of
            Occ3D's and OpenOcc's, and `surroundocc` of SurroundOcc's (relative to root), or None.
        grid: which labels.

    Raises:
        InputError: there are no labels on such a grid, or their folder or store is missing.
    """
    root = root_of(data)
    if isinstance(data.labels, DictConfig):
        return instantiate(data.labels, _partial_=True)(root=root, grid=grid)
    classes = SURROUNDOCC_CLASSES if grid == SURROUNDOCC else OCC3D_CLASSES
    if data.labels is not None and data.labels != "openocc":
        return TeacherLabels(Path(data.labels), grid, classes)
    if grid == OCC3D:
        folder = None if data.labels_folder is None else root / Path(data.labels_folder).expanduser()
        return Occ3DLabels(folder) if data.labels is None else OpenOccLabels(folder)
    if data.labels is not None:
        raise InputError(f"OpenOcc's labels are not on grid {grid.name}: use grid=occ3d")
    if grid == SURROUNDOCC:
        return SurroundOccLabels(None if data.surroundocc is None else root / Path(data.surroundocc).expanduser())
    raise InputError(f"no labels are known on grid {grid.name}: use grid=occ3d or grid=surroundocc")
