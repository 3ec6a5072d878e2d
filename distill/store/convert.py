"""A store made of others that hold what the same teacher said: in this schema, another encoding, or several in one.

What needs no other encoding is copied chunk by chunk. Letters: B batch, X Y Z voxel axes, C classes, K columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from distill.errors import InputError
from distill.files import leaves
from distill.frame import Frame, stack
from distill.signals import ENCODINGS, Signal, TeacherPrediction, described
from distill.signals.bev import LEAST_PROB, Bev, BevProbs, Columns
from distill.signals.coarse import LayerCodes, LevelBev, LevelVoxels
from distill.signals.columns import ColumnCoefs, ColumnVoxels, decoded_columns
from distill.signals.voxels import VoxelCodes
from distill.store.address import place_of
from distill.store.keeping import encoded, encoded_as_in, kept
from distill.store.reader import TeacherStore
from distill.store.sample import DamagedSample
from distill.store.schema import read_whole
from distill.store.writer import StoreWriter, teacher_errors

# token -> what the cameras of a keyframe show, bool (X, Y, Z); None: it has no label
Shown = Callable[[str], np.ndarray | None]


@dataclass
class Conversion:
    """The making of a store from others.

    Attributes:
        sources: whose samples are taken; of a keyframe that several hold, that of the first whose is intact.
        writer: of the new store.
        shown: what cameras show, where the new store keeps that and the others keep all; None: all are alike.
        damaged: token -> a line, of each sample that was left out because it is damaged.
    """

    sources: Sequence[TeacherStore]
    writer: StoreWriter
    shown: Shown | None
    damaged: dict[str, str]

    @classmethod
    def open(cls, sources: Sequence[TeacherStore], asked: DictConfig, shown: Shown | None) -> tuple[Conversion, str]:
        """Make the new store, or go on with it.

        Args:
            sources: one or several.
            asked: the configuration's `store`.
            shown: what cameras show, if that is known.

        Returns:
            The conversion, and what was chosen, in words.

        Raises:
            InputError: they are not of one teacher and one dataset version, or cannot be kept so, or another store is
                there.
        """
        first, place = sources[0], place_of(asked.path)
        _check_alike(sources)
        if any(os.path.realpath(source.path) == os.path.realpath(asked.path) for source in sources):
            raise InputError(f"{asked.path} is one of the stores that are read: give another store.path")
        if not any(source.present for source in sources):
            raise InputError(f"no keyframe is in {', '.join(source.path for source in sources)}: nothing to do")
        keep = first.identity.keep if asked.keep == "same" else asked.keep
        shown = shown if keep != first.identity.keep else None
        _check_kept(first, keep, shown)
        asked = OmegaConf.create({**asked, "keep": keep})
        signals, told = _signals(first, asked, shown)
        for source in sources:
            _check_columns(source, signals)
        identity = replace(first.identity, signals=described(signals), keep=keep)
        scenes = [str(scene) for scene in read_whole(first.place, "scenes")]
        if place.empty():
            StoreWriter.create(place, identity, first.tokens, scenes, signals, [in_words(each) for each in sources])
        return cls(sources, StoreWriter.open(place, identity, first.tokens, scenes), shown, {}), told

    def run(self, threads: int) -> int:
        """Write what the new store lacks; how many samples were written."""
        written = 0
        for source in self.sources:
            tokens = self.writer.missing([token for token in source.tokens if token in source.present])
            again = self._again(source)
            with ThreadPoolExecutor(threads) as pool:
                done = pool.map(lambda token, source=source, again=again: self._take(source, token, again), tokens)
                written += sum(tqdm(done, source.name, len(tokens), unit="keyframe"))
        return written

    def _take(self, source: TeacherStore, token: str, again: Sequence[str]) -> bool:
        """Write a sample that no other process writes; whether it was written."""
        if not self.writer.claim(token):
            return False
        try:
            if self.writer.version(token) is not None:
                return False
            self.writer.put(token, self._chunks(source, token, again))
        except DamagedSample as error:
            self.damaged[token] = error.what
            return False
        finally:
            self.writer.release(token)
        self.damaged.pop(token, None)  # of an earlier source
        return True

    def _again(self, source: TeacherStore) -> list[str]:
        """The signals that are to be encoded again."""
        return [
            name
            for name, signal in self.writer.signals.items()
            if is_encoded(signal) and (self.shown is not None or not _same(signal, source.signals[name]))
        ]

    def _chunks(self, source: TeacherStore, token: str, again: Sequence[str]) -> dict[str, bytes]:
        """All chunks of a sample in the new store, by the names of their arrays."""
        values: dict[str, np.ndarray] = {}
        if not source.knows_frames:
            values["frame_digests"] = np.zeros(len(source.identity.frame_digests), np.uint32)
        if again or self.shown is not None:
            with teacher_errors(token):
                values |= self._encoded(source, token, again)
        arrays = self.writer.store.arrays
        chunks = source.chunks(token, [name for name in arrays if name not in values])
        for name, array in arrays.items():
            if name in values:
                chunks[name] = array.pack(values[name])
            elif array != source.arrays[name]:
                chunks[name] = array.pack(source.arrays[name].unpack(chunks[name]))
        return chunks

    def _encoded(self, source: TeacherStore, token: str, again: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays of signals that are encoded again, and those that say of which voxels."""
        signals, keep = self.writer.signals, self.writer.store.identity.keep
        frame, said = answer(source, token, self.shown)
        said = kept(said, frame, keep, isinstance(signals.get("voxels"), ColumnVoxels))
        kept_BXYZ = said.said()
        assert kept_BXYZ is not None
        values: dict[str, np.ndarray] = {}
        if "voxels" in again:
            values |= signals["voxels"].encode(signals["voxels"].say(said, frame, free=0)[0])
        if "bev" in again:
            values |= _encoded_columns(signals["bev"], source, token, self._columns(kept_BXYZ[0]))
        if self.shown is not None:
            values |= {"voxel_coverage": kept_BXYZ[0].numpy(), "column_coverage": source.in_columns(token)}
        return values

    def _columns(self, kept_XYZ: Tensor) -> Tensor:
        """Which columns stay what they are, bool (X, Y, 1): all, or those of which anything is kept."""
        kept_XY1 = kept_XYZ.any(-1, keepdim=True)
        return torch.ones_like(kept_XY1) if self.shown is None else kept_XY1


def overlap(sources: Sequence[TeacherStore]) -> str:
    """How many keyframes several stores hold, and how many of these differ, in words; "" if there is none."""
    shared = different = 0
    for token in sources[0].tokens:
        holding = [source for source in sources if token in source.present]
        if len(holding) > 1:
            shared += 1
            different += any(_differ(holding[0], other, token) for other in holding[1:])
    if not shared:
        return ""
    differing = f"{different} of them differ, of which the first is taken" if different else "and are the same"
    return f"{shared} keyframes are in several of these stores{',' if different else ''} {differing}"


def in_words(store: TeacherStore) -> str:
    """Its schema and encoding."""
    voxels = store.signals.get("voxels")
    by = next((name for name, kinds in ENCODINGS.items() if isinstance(voxels, kinds["voxels"])), "another way")
    return f"schema {store.schema}" + ("" if voxels is None else f", voxels by {by}")


def answer(source: TeacherStore, token: str, shown: Shown | None) -> tuple[Frame, TeacherPrediction]:
    """What a store says of a keyframe, as its teacher would have: a batch of one.

    Args:
        source: the store; if it has no voxels, all are uniform.
        token: of the keyframe.
        shown: what its cameras show, if that is to be kept alone.
    """
    covered_XYZ = torch.from_numpy(source.coverage(token))
    mask = None if shown is None else shown(token)
    mask_XYZ = torch.zeros_like(covered_XYZ) if mask is None else torch.from_numpy(mask)
    frame = Frame(token=[token], labelled=torch.tensor([mask is not None]), mask_camera=mask_XYZ[None])
    if is_encoded(source.signals.get("voxels")):
        voxels_XYZC = voxel_log_probs(source, token)
    else:
        count = len(source.identity.classes)
        voxels_XYZC = torch.tensor(-math.log(count)).expand(*covered_XYZ.shape, count)
    return frame, TeacherPrediction(voxels_XYZC[None], covered_XYZ[None])


def voxel_log_probs(store: TeacherStore, token: str) -> Tensor:
    """Log-probabilities of voxels by whatever encoding, float32 (X, Y, Z, C); arbitrary where nothing is kept."""
    record: Any = store.told(token, ["voxels"], coverage=False).signals["voxels"]
    if isinstance(record, ColumnCoefs):
        x, y, _ = store.grid.shape
        return decoded_columns(stack([record]), 0, torch.arange(x * y)).unflatten(0, (x, y)).log_softmax(-1)
    return _levels(record).log_softmax(-1)


def column_log_probs(store: TeacherStore, token: str) -> Tensor:
    """Log-probabilities of columns by whatever encoding, float32 (X, Y, C)."""
    record: Any = store.told(token, ["bev"], coverage=False).signals["bev"]
    if isinstance(record, BevProbs):
        return torch.from_numpy(np.maximum(record.probs, LEAST_PROB)).log().log_softmax(-1)
    return _levels(record).squeeze(2).log_softmax(-1)


def _levels(record: LayerCodes | VoxelCodes) -> Tensor:
    """Of voxels, float32 (X, Y, Z, C); Z is 1 of columns."""
    levels = torch.from_numpy(record.table[record.codes])
    return levels.permute(1, 2, 0, 3) if isinstance(record, LayerCodes) else levels


def is_encoded(signal: Signal | None) -> bool:
    """Whether a signal is one of `ENCODINGS`, so that another of them may keep it."""
    return any(isinstance(signal, kind) for kinds in ENCODINGS.values() for kind in kinds.values())


def _encoded_columns(signal: Signal, source: TeacherStore, token: str, kept_XY1: Tensor) -> dict[str, np.ndarray]:
    columns_XYC = column_log_probs(source, token)
    columns_XYC = columns_XYC.where(kept_XY1, torch.tensor(-math.log(columns_XYC.shape[-1])))
    if isinstance(signal, Bev):
        return signal.encode(Columns(columns_XYC.exp().numpy(), source.in_columns(token).any(-1)))
    return signal.encode(columns_XYC.numpy())


def _signals(first: TeacherStore, asked: DictConfig, shown: Shown | None) -> tuple[list[Signal], str]:
    """The signals of the new store, and how they were chosen, in words."""
    theirs = list(first.signals.values())
    if asked.encoding == "same":
        return theirs, ""
    if not place_of(asked.path).empty():
        return encoded_as_in(TeacherStore(asked.path), theirs, asked), ""
    if all(_holds(signal, asked) for signal in theirs):
        return theirs, ""
    return encoded([_on_levels(signal) for signal in theirs], asked, lambda: _first_answer(first, shown))


def _holds(signal: Signal, asked: DictConfig) -> bool:
    """Whether it is in the encoding that is asked for."""
    if not is_encoded(signal):
        return True
    names = ("columns", "levels") if asked.encoding == "auto" else (asked.encoding,)
    right = any(isinstance(signal, ENCODINGS[name][signal.name]) for name in names)
    return right and (not isinstance(signal, ColumnVoxels) or signal.step == asked.step)


def _on_levels(signal: Signal) -> Signal:
    if not is_encoded(signal):
        return signal
    if isinstance(signal, Bev | LevelBev):
        return LevelBev(signal.grid, signal.classes, signal.rule)
    return LevelVoxels(signal.grid, signal.classes)


def _first_answer(source: TeacherStore, shown: Shown | None) -> tuple[Frame, TeacherPrediction]:
    """Of the first keyframe that is intact."""
    for token in source.tokens:
        if token in source.present:
            with suppress(DamagedSample):
                source.verify(token)
                return answer(source, token, shown)
    raise InputError(f"no keyframe in {source.path} is intact, of which an encoding could be chosen")


def _same(one: Signal, other: Signal) -> bool:
    """Whether the chunks of two signals mean the same."""
    ours, theirs = one.constants(), other.constants()
    return described([one]) == described([other]) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _differ(one: TeacherStore, other: TeacherStore, token: str) -> bool:
    """Whether two stores hold different chunks of a keyframe, as far as they are meant to be the same."""
    apart = {
        array.name
        for name, signal in one.signals.items()
        if is_encoded(signal) and not _same(signal, other.signals[name])
        for array in signal.arrays()
    }
    ours, theirs = _checksums(one, token), _checksums(other, token)
    return any(ours[name] != theirs[name] for name in (ours.keys() & theirs.keys()) - apart)


def _checksums(store: TeacherStore, token: str) -> dict[str, bytes]:
    """Of the chunks of a present sample, by the names of arrays."""
    record = store.commit_record(token)
    return {name: record[4 * column :][:4] for column, name in enumerate(store.arrays)}


def _check_alike(sources: Sequence[TeacherStore]) -> None:
    """Refuse stores of several teachers or dataset versions."""
    first = sources[0]
    for other in sources[1:]:
        ours, theirs = _facts(first), _facts(other)
        different = [key for key in ours | theirs if ours.get(key, "nothing") != theirs.get(key, "nothing")]
        if different:
            key = different[0]
            raise InputError(
                f"{first.path} and {other.path} are not of one dump: {key} is {ours.get(key, 'nothing')!r} and "
                f"{theirs.get(key, 'nothing')!r}: name stores of one teacher and one dataset version"
            )


def _facts(store: TeacherStore) -> dict[str, Any]:
    """What must agree, by key."""
    signals = {
        name: "encoded" if is_encoded(store.signals[name]) else description
        for name, description in store.identity.signals.items()
    }
    return leaves({**store.identity.to_dict(), "signals": signals, "tokens": store.tokens}, lists=True)


def _check_kept(first: TeacherStore, keep: str, shown: Shown | None) -> None:
    """Refuse to keep what cameras show where it is not known what that is."""
    if keep != first.identity.keep and shown is None:
        raise InputError(
            f"store.keep={keep}: {first.path} does not know what the cameras of labelled keyframes show: say where the "
            "labels are, with data=nuscenes data.root=..."
        )


def _check_columns(source: TeacherStore, signals: Sequence[Signal]) -> None:
    """Refuse to make columns of which voxels are missing."""
    theirs = source.signals.get("voxels")
    if source.identity.keep == "all" or isinstance(theirs, ColumnVoxels):
        return
    if any(isinstance(signal, ColumnVoxels) for signal in signals):
        raise InputError(
            f"{source.path} keeps single voxels, those that cameras show; store.encoding=columns needs whole columns: "
            "set store.encoding=same or levels, or dump it again"
        )
