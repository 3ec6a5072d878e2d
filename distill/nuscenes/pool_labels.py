"""occ-pool-labels: write the labels of keyframes at coarser resolutions, for other people's code."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from distill.classes import ClassSet
from distill.command import command
from distill.errors import InputError
from distill.files import durable, write_durably
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.index import KeyframeIndex
from distill.nuscenes.inventory import Inventory, place_of_labels, settle_missing, summary, take_stock
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.labels import LabelSource
from kernels.pooled_labels import UNKNOWN, pooled_labels

MANIFEST = "pooled_labels.json"


class PooledLabels(NamedTuple):
    """A folder of pooled labels: `<scene>/<sample token>/labels_1_<scale>.npy`, uint8 (X, Y, Z) / scale.

    Attributes:
        folder: where they lie.
        labels: what is pooled; what `mask_camera` leaves out counts as `UNKNOWN` (docs/formulas.md 4.18).
        classes: of the labels.
    """

    folder: Path
    labels: LabelSource
    classes: ClassSet

    def path(self, keyframe: Keyframe, scale: int) -> Path:
        """The file of a keyframe."""
        return self.folder / keyframe.scene / keyframe.token / f"labels_1_{scale}.npy"

    def claim(self) -> None:
        """Make the folder and say in it what its files are.

        Raises:
            InputError: it holds others, or cannot be written.
        """
        manifest, said = self.folder / MANIFEST, self._description()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if manifest.exists() and json.loads(manifest.read_text()) != said:
                raise InputError(f"{manifest}: the labels there are others than these: choose another output=")
            write_durably(manifest, json.dumps(said, indent=1).encode())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"{manifest}: cannot be read or written ({error}): choose another output=") from error

    def _description(self) -> dict[str, Any]:
        source = type(self.labels)
        return {
            "files": "<scene>/<sample token>/labels_1_<scale>.npy, uint8 [x, y, z]; <scale>: voxels along a block",
            "rule": "more than 95 % free or unknown: the more frequent of the two, unknown if equal; "
            "otherwise the most frequent other class, the lowest id if equal; each scale from the full resolution",
            "unknown": UNKNOWN,
            "unknown_where": "mask_camera is 0",
            "free": self.classes.free,
            "classes": list(self.classes.names),
            "grid": self.labels.grid.to_dict(),
            "labels": f"{source.__module__}.{source.__qualname__}",
        }

    def pool(self, keyframe: Keyframe, scales: Sequence[int]) -> None:
        """Write those of a labelled keyframe at some scales."""
        found = self.labels.read(keyframe)
        assert found is not None
        labels_XYZ = torch.from_numpy(np.where(found["mask_camera"], found["semantics"], np.uint8(UNKNOWN)))
        for scale in scales:
            path = self.path(keyframe, scale)
            path.parent.mkdir(parents=True, exist_ok=True)
            with durable(path) as file:
                np.save(file, pooled_labels(labels_XYZ, scale, self.classes.free).numpy())


@command("pool_labels")
def main(config: DictConfig) -> None:
    """Pool the labels of the configured splits; see conf/pool_labels.yaml."""
    index, classes = open_dataroot(config.data), instantiate(config.classes)
    pooled = PooledLabels(Path(config.output), open_labels(config.data, instantiate(config.grid)), classes)
    pooled.claim()
    splits = survey(config, index, pooled)
    labelled = {
        keyframe.token: keyframe
        for stock in splits.values()
        for keyframe in stock.keyframes
        if keyframe.token in stock.labelled
    }
    outstanding = [
        (keyframe, scales)
        for keyframe in labelled.values()
        if (scales := [each for each in config.scales if config.overwrite or not pooled.path(keyframe, each).exists()])
    ]
    with ThreadPoolExecutor(config.threads) as pool:
        written = pool.map(lambda each: pooled.pool(*each), outstanding)
        deque(tqdm(written, "pool labels", len(outstanding), unit="keyframe"), maxlen=0)
    unlabelled = {token for stock in splits.values() for token in stock.keyframes.tokens} - labelled.keys()
    print(
        f"pooled the labels of {len(outstanding)} keyframes, {len(labelled) - len(outstanding)} were there, "
        f"{len(unlabelled)} have none: {pooled.folder}",
        flush=True,
    )


def survey(config: DictConfig, index: KeyframeIndex, pooled: PooledLabels) -> dict[str, Inventory]:
    """What there is of the configured splits, which is printed.

    Raises:
        InputError: label files are empty, or there are none.
    """
    labels = pooled.labels
    splits = {
        split: take_stock(index.keyframes(split), labels, pooled.classes.free, cameras=False, lidar=False)
        for split in config.splits
    }
    settle_missing(splits, config.data.missing, pooled.folder / "missing_files.txt")
    print(summary(splits, labels, {}), flush=True)
    if not any(stock.labelled for stock in splits.values()):
        place = place_of_labels(next(iter(splits.values())), labels)
        raise InputError(f"no keyframe of {', '.join(splits)} has labels ({place}): put them there")
    return splits
