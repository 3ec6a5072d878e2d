"""From the `data` node of a configuration to an index of keyframes, and to their labels."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from distill.demo import ensure_world
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.nuscenes.index import NuScenesIndex, load_index
from distill.nuscenes.labels import LabelSource, Occ3DLabels, SurroundOccLabels


def open_dataroot(data: DictConfig) -> NuScenesIndex:
    """Open the nuScenes dataroot that `data` describes; a demo world is made on first use.

    Args:
        data: a `data` config group: `root`, `version`, `cache_dir`, and `world` (a WorldConfig node or None).

    Raises:
        InputError: dataroot or version are missing or broken.
    """
    root = Path(data.root).expanduser()
    if data.world is not None:
        ensure_world(root, instantiate(data.world), workers=os.cpu_count() or 1)
    if not root.is_dir():
        raise InputError(f"no nuScenes dataroot at {root}: no such folder; say where it is with data.root=")
    return load_index(root, data.version, Path(data.cache_dir).expanduser(), data.lidar_columns)


def open_labels(data: DictConfig, grid: VoxelGrid) -> LabelSource:
    """The labels on `grid` that belong to the dataroot.

    Args:
        data: a `data` config group: `root`; `labels`, a node of a user's own `LabelSource` or None, built with `root`
            and `grid`; and for SurroundOcc `surroundocc`, a folder (relative to root) or None.
        grid: which labels.

    Raises:
        InputError: there are no labels on such a grid, or their folder is missing.
    """
    root = Path(data.root).expanduser()
    if data.labels is not None:
        return instantiate(data.labels, _partial_=True)(root=root, grid=grid)
    if grid == OCC3D:
        return Occ3DLabels(root / "gts")
    if grid == SURROUNDOCC:
        return SurroundOccLabels(None if data.surroundocc is None else root / Path(data.surroundocc).expanduser())
    raise InputError(f"no labels are known on grid {grid.name}: use grid=occ3d or grid=surroundocc")
