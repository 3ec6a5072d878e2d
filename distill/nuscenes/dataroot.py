"""From the `data` node of a configuration to an index of keyframes."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from distill.nuscenes.index import NuScenesIndex, load_index
from distill.nuscenes.world import ensure_world


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
    return load_index(root, data.version, Path(data.cache_dir).expanduser())
