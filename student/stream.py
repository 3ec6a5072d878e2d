"""Frames joined with what teachers said about them, by sample token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.data import Dataset

from distill.errors import InputError
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.inventory import Inventory
from distill.store import DamagedSample, TeacherStore
from distill.store.gaussians import COLUMNS, decode_gaussians


class TeacherStream(Dataset[dict[str, Any]]):
    """Samples of `frames` with the signals of the first store that holds them.

    Adds to each sample, before it is augmented:
        teacher_voxel: uint8 codes (X, Y, Z, C); teacher_table: float32 (256,), the log-probability of each code
        teacher_covered: bool (X, Y, Z), whether the teacher has modelled the voxel
        teacher_bev: float32 probabilities (X, Y, C)
        taught: bool, False for a frame without a readable teacher (its signals are empty)
    or, of all but the last, instead:
        teacher_gaussians: `Gaussians` in the LIDAR_TOP frame [render]

    Args:
        frames: what to join.
        stores: teacher stores; without any, samples pass as they are.
        missing: "error" or "skip": what to do about a frame that no store holds, or holds damaged.
        render: whether the teacher is its Gaussians.
    """

    def __init__(self, frames: FrameDataset, stores: list[TeacherStore], missing: str, render: bool) -> None:
        self.frames = frames
        self.stores = stores
        self.missing = missing
        self.signals, self.silence = (_gaussians, _no_gaussians) if render else (_voxels, _no_voxels)

    def __len__(self) -> int:
        return len(self.frames)

    def set_epoch(self, epoch: int) -> None:
        """See `FrameDataset.set_epoch`."""
        self.frames.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, transform = self.frames.load(index)
        if self.stores:
            sample |= self._teacher(sample["token"])
        return transform.apply(sample)

    def _teacher(self, token: str) -> dict[str, Any]:
        store = find_store(self.stores, token)
        try:
            if store is not None:
                return self.signals(store, token) | {"taught": True}
        except DamagedSample:
            if self.missing == "error":
                raise
        return self.silence(self.stores[0]) | {"taught": False}


def _voxels(store: TeacherStore, token: str) -> dict[str, Any]:
    return {
        "teacher_voxel": store.codes(token),
        "teacher_table": store.log_prob_table,
        "teacher_covered": store.coverage(token),
        "teacher_bev": store.bev_probs(token),
    }


def _no_voxels(store: TeacherStore) -> dict[str, Any]:
    shape, classes = store.grid.shape, len(store.identity.classes)
    return {
        "teacher_voxel": np.zeros((*shape, classes), np.uint8),
        "teacher_table": store.log_prob_table,
        "teacher_covered": np.zeros(shape, bool),
        "teacher_bev": np.zeros((*shape[:2], classes), np.float32),
    }


def _gaussians(store: TeacherStore, token: str) -> dict[str, Any]:
    return {"teacher_gaussians": store.gaussians(token)}


def _no_gaussians(store: TeacherStore) -> dict[str, Any]:
    assert store.identity.gaussians is not None
    return {"teacher_gaussians": decode_gaussians(np.empty((0, len(COLUMNS)), np.float32), store.identity.gaussians)}


def find_store(stores: list[TeacherStore], token: str) -> TeacherStore | None:
    """The first store that holds the sample, None if no one does."""
    return next((store for store in stores if token in store.present), None)


def open_stores(config: DictConfig, tokens: list[str]) -> list[TeacherStore]:
    """Open the configured stores for a student on `config.grid` that is taught about `tokens`; none for kd=none.

    Raises:
        InputError: a store does not exist, does not hold what is asked for, or has another grid, class set or schema; a
            token is in none of them and store.missing is "error".
    """
    if config.kd.loss is None:
        return []
    stores = [TeacherStore(Path(path)) for path in config.store.paths]
    if not stores:
        raise InputError(f"kd={config.kd.name} needs a teacher: give store.paths=[...], or kd=none")
    for store in stores:
        if config.store.render:
            store.check_gaussians(instantiate(config.classes))
        else:
            store.check(instantiate(config.grid), instantiate(config.classes))
    untaught = [token for token in tokens if find_store(stores, token) is None]
    if untaught and config.store.missing == "error":
        raise InputError(
            f"{len(untaught)} of {len(tokens)} training keyframes (first {untaught[0]}) are not in "
            f"{', '.join(config.store.paths)}: dump them with occ-dump, or set store.missing=skip"
        )
    return stores


def check_same_frames(stores: list[TeacherStore], stock: Inventory) -> None:
    """Raise InputError where a teacher was dumped from other files than those that its student would be given."""
    for store in stores:
        taught = [token for token in stock.keyframes.tokens if find_store(stores, token) is store]
        different = store.other_frames({token: stock.digests[token] for token in taught})
        if different:
            token, sources = next(iter(different.items()))
            raise InputError(
                f"{store.path}: {len(different)} of {len(taught)} keyframes were dumped from other files than those of "
                f"data.root (first {token}: {', '.join(sources)}): give the data that the teacher saw, or dump it again"
            )


def not_compared(stores: list[TeacherStore]) -> list[str]:
    """A line for each store that does not say what it was dumped from."""
    return [
        f"{store.path} is of schema 2, which does not say which files it was dumped from: they are not compared"
        for store in stores
        if not store.knows_frames
    ]
