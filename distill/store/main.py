"""occ-store: look into teacher stores, check them, and make others of them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from distill.command import command
from distill.errors import InputError
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.signals.arrays import is_sealed
from distill.store.convert import Conversion, Shown, overlap
from distill.store.info import report
from distill.store.packing import Packing
from distill.store.packs import DamagedIndex, Layout, Pack
from distill.store.reader import TeacherStore
from distill.store.sample import DamagedSample
from distill.store.schema import read_whole
from distill.store.writer import StoreWriter

DAMAGED = 1  # how the program ends when samples are damaged


@command("stores")
def main(config: DictConfig) -> None:
    """Do what is configured; see conf/stores.yaml."""
    stores = [TeacherStore(path) for path in config.path]
    if config.do == "info":
        print("\n\n".join(report(store, config.threads) for store in stores), flush=True)
        return
    if config.do == "verify":
        damaged = sum(verify(store, config.threads, config.discard) for store in stores)
    elif config.do == "pack":
        damaged = sum(map(pack, stores))
    else:
        damaged = make(stores, config)
    if damaged:
        sys.exit(DAMAGED)


def verify(store: TeacherStore, threads: int, discard: bool) -> int:
    """Check every byte of a store; what is damaged is printed, a line for each array of a keyframe.

    Args:
        store: that one.
        threads: that read.
        discard: whether damaged samples are taken out, and damaged packs made again without them.

    Returns:
        How many damaged samples and packs are left.

    Raises:
        InputError: what is kept once is damaged.
    """
    read_whole(store.place, "scenes")
    for signal in store.signals.values():  # each is built of what it keeps once, which is read and checked
        signal.constants()
    tokens = [token for token in store.tokens if token in store.present]
    damaged, packs = check(store, tokens, threads)
    told = f"{store.path}: {len(tokens)} of {len(store.tokens)} keyframes, {len(damaged)} damaged"
    told += f", {len(packs)} packs damaged" if packs else ""
    left = len(damaged) + len(packs)
    if left and not discard:
        told += ": take them out with discard=true, and occ-dump does them again"
    elif left:
        discarded = StoreWriter(store).discard_damaged(damaged)
        told += f", {discarded} discarded: occ-dump does them again"
        renewed = renew(store, packs) if packs else 0
        told += f"; {renewed} packs made again of what is intact" if packs else ""
        left -= discarded + renewed
    print(told, flush=True)
    return left


def check(store: TeacherStore, tokens: list[str], threads: int) -> tuple[list[str], list[Pack]]:
    """Those of these present samples that are damaged, and the packs that are; both are printed."""
    layout, damaged, packs = store.layout, list[str](), list[Pack]()
    in_files = [token for token in tokens if layout.pack(store.row(token)) is None]
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc=store.name, total=len(tokens), unit="keyframe") as progress,
    ):
        for token, lines in zip(in_files, pool.map(partial(damages, store), in_files), strict=True):
            damaged += [token] * bool(lines)
            _tell(lines, progress, 1)
        for pack, found in zip(layout.packs, pool.map(partial(_check_pack, store, layout), layout.packs), strict=True):
            damaged += found.tokens
            packs += [pack] * bool(found.lines)
            _tell(found.lines, progress, len(layout.rows_of(pack)))
    return damaged, packs


def damages(store: TeacherStore, token: str) -> list[str]:
    """A line for each array whose chunk of a present sample is not what was written."""
    with suppress(DamagedSample):
        store.verify(token)
        return []
    lines = []
    for name in store.arrays:
        try:
            store.chunk(token, name)
        except DamagedSample as error:
            lines.append(error.what)
    return lines


class _Found(NamedTuple):
    """What is wrong with a pack, and which samples cannot be read from it."""

    lines: list[str]
    tokens: list[str]


def _check_pack(store: TeacherStore, layout: Layout, pack: Pack) -> _Found:
    """Of the whole file at once; if that is not what was written, of its samples one by one."""
    tokens, elsewhere = [store.tokens[row] for row in layout.rows_of(pack)], list[str]()
    try:
        layout.index(pack)
        if is_sealed(store.place.read(pack.name)):
            return _Found([], [])
        elsewhere = [f"{store.path}/{pack.name} is damaged beside its keyframes, which are intact"]
    except DamagedIndex as error:
        return _Found([f"{len(tokens)} samples are damaged with {error}"], tokens)
    except FileNotFoundError:
        pass  # another process has just replaced it
    lines = {token: damages(store, token) for token in tokens}
    damaged = [token for token in tokens if lines[token]]
    return _Found([line for token in damaged for line in lines[token]] or elsewhere, damaged)


def _tell(lines: list[str], progress: tqdm, done: int) -> None:
    for line in lines:
        print(line)
    progress.update(done)


def renew(store: TeacherStore, packs: list[Pack]) -> int:
    """Make packs again of what is intact in them; how many were."""
    packing, renewed = Packing(store), 0
    for group in packing.groups(store.look()):
        of_group = sum(pack.first in group for pack in packs)
        if of_group and packing.pack(group, anew=True) is not None:
            renewed += of_group
    return renewed


def pack(store: TeacherStore) -> int:
    """Move the keyframes of a store into packs; how many damaged samples kept others from it."""
    packing = Packing(store)
    packed = packing.run()
    for line in packing.damaged:
        print(f"{line}: its scene was not packed, take it out with do=verify discard=true")
    if packing.in_use:
        print(f"{packing.in_use} keyframes of scenes that others are writing were left alone: pack them later")
    print(f"{packed} keyframes were packed")
    print(store.summary(), flush=True)
    return len(packing.damaged)


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
