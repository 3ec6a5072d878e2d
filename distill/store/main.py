"""occ-store: look into teacher stores, check them, and make others of them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from distill.command import command
from distill.errors import InputError
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.store.convert import Conversion, Shown, overlap
from distill.store.info import report
from distill.store.reader import DamagedSample, TeacherStore
from distill.store.schema import read_whole
from distill.store.writer import StoreWriter

DAMAGED = 1  # how the program ends when samples are damaged


@command("stores")
def main(config: DictConfig) -> None:
    """Do what is configured; see conf/stores.yaml."""
    stores = [TeacherStore(Path(path)) for path in config.path]
    if config.do == "info":
        print("\n\n".join(report(store, config.threads) for store in stores), flush=True)
        return
    if config.do == "verify":
        damaged = sum(verify(store, config.threads, config.discard) for store in stores)
    else:
        damaged = make(stores, config)
    if damaged:
        sys.exit(DAMAGED)


def verify(store: TeacherStore, threads: int, discard: bool) -> int:
    """Check every byte of a store; what is damaged is printed, a line for each array of a keyframe.

    Args:
        store: that one.
        threads: that read.
        discard: whether damaged samples are taken out.

    Returns:
        How many damaged samples are left.

    Raises:
        InputError: what is kept once is damaged.
    """
    read_whole(store.place, "scenes")
    for signal in store.signals.values():  # each is built of what it keeps once, which is read and checked
        signal.constants()
    tokens = [token for token in store.tokens if token in store.present]
    with ThreadPoolExecutor(threads) as pool:
        checked = pool.map(lambda token: damaged_arrays(store, token), tokens)
        found = dict(zip(tokens, tqdm(checked, store.path.name, len(tokens), unit="keyframe"), strict=True))
    damaged = {token: arrays for token, arrays in found.items() if arrays}
    for token, arrays in damaged.items():
        for name in arrays:
            file = store.path / store.arrays[name].chunk(store.row(token))
            print(f"sample {token} is damaged in array {name}, file {file}")
    discarded = StoreWriter(store).discard_damaged(list(damaged)) if discard else 0
    told = f"{store.path}: {len(tokens)} of {len(store.tokens)} keyframes, {len(damaged)} damaged"
    if discarded:
        told += f", {discarded} discarded: occ-dump does them again"
    elif damaged:
        told += ": take them out with discard=true, and occ-dump does them again"
    print(told, flush=True)
    return len(damaged) - discarded


def damaged_arrays(store: TeacherStore, token: str) -> list[str]:
    """The arrays whose chunk of a present sample is not what was written."""
    damaged = []
    for name in store.arrays:
        try:
            store.chunk(token, name)
        except DamagedSample:
            damaged.append(name)
    return damaged


def make(stores: list[TeacherStore], config: DictConfig) -> int:
    """Make a store of one or several; how many samples were left out because they are damaged.

    Raises:
        InputError: it cannot be made.
    """
    if config.store.path is None:
        raise InputError(f"do={config.do} makes a new store: say where, with store.path=...")
    if (len(stores) > 1) != (config.do == "merge"):
        of, instead = ("one store", "merge") if config.do == "convert" else ("several stores", "convert")
        raise InputError(f"do={config.do} is of {of}, path has {len(stores)}: set do={instead}, or another path")
    conversion, told = Conversion.open(stores, config.store, shown_by(config, stores[0]))
    for line in filter(None, (told, overlap(stores))):
        print(line, flush=True)
    written = conversion.run(config.threads)
    for line in conversion.damaged.values():
        print(f"{line}: left out")
    print(f"{written} keyframes were written, {len(conversion.damaged)} left out")
    print(conversion.writer.summary(), flush=True)
    return len(conversion.damaged)


def shown_by(config: DictConfig, store: TeacherStore) -> Shown | None:
    """What cameras show, by the labels that `data` describes; None if it describes none."""
    if config.data is None:
        return None
    index, labels = open_dataroot(config.data), open_labels(config.data, store.grid)

    def shown(token: str) -> np.ndarray | None:
        found = labels.read(index.keyframe(token))
        return None if found is None else found["mask_camera"]

    return shown
