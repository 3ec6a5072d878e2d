"""What is on disk of each keyframe, before anything is done with it: its files, its labels, and what they are.

A keyframe is known by its token, its data by digests: whether a store or a checkpoint was made from the very images,
scans and calibration that lie at a dataroot does not depend on where that dataroot is.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from tqdm import tqdm

from distill import ranks
from distill.errors import InputError
from distill.grids import OCC3D
from distill.nuscenes.index import Keyframes
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.labels import LabelSource
from distill.nuscenes.layout import CAMERAS, LIDAR


def sources_of(channels: Sequence[str]) -> tuple[str, ...]:
    """What the digests of a keyframe are of, one for each, where the cameras are `channels`."""
    return (*channels, LIDAR, "calibration", "labels")


SOURCES = sources_of(CAMERAS)  # of nuScenes
LOOKED_AT = 32  # label files of a split that are read for the summary
_BLOCK = 4096  # bytes from the middle of a file that stand for its content, besides its size
_THREADS = 16  # they wait for the disk
_PATIENCE = 2.0  # seconds until the progress bar appears
# of Occ3D-nuScenes' train split (docs/formulas.md 2.2): visible voxels of all, free of the visible ones; and what no
# split of keyframes has
_OCC3D_VISIBLE, _OCC3D_FREE = 0.136, 0.775
_PLAUSIBLE_VISIBLE, _PLAUSIBLE_FREE = (0.02, 0.5), (0.3, 0.99)


@dataclass(frozen=True)
class Inventory:
    """What is on disk of some keyframes.

    Attributes:
        keyframes: those that are whole.
        left_out: by the token of a keyframe the files that it needs and that are absent or empty, and what each is (a
            channel or "labels"); no file where it needs a LiDAR scan and the data name none. Labels may be absent, but
            an empty file of them was meant to hold some.
        labelled: tokens of the whole keyframes that have labels.
        digests: token -> uint32 (S,), one for each of `sources`, 0 for what is absent; behind them, where a further
            file was asked for, its own.
        masks: of label files that were looked at, how many voxels each `mask_camera` holds and how many of them are
            free, int64 (L, 2).
        voxels: of a label file.
    """

    keyframes: Keyframes
    left_out: dict[str, dict[Path, str]]
    labelled: frozenset[str]
    digests: dict[str, np.ndarray]
    masks: np.ndarray
    voxels: int

    @property
    def sources(self) -> tuple[str, ...]:
        """What the digests are of; see `sources_of`."""
        return sources_of(self.keyframes.channels)

    def identity(self, sources: Iterable[str]) -> str:
        """SHA-256 of the tokens in order and the digests of some of `sources`, hex."""
        columns = [self.sources.index(source) for source in sources]
        told = hashlib.sha256()
        for token in self.keyframes.tokens:
            told.update(token.encode() + self.digests[token][columns].astype("<u4").tobytes())
        return told.hexdigest()


def take_stock(
    keyframes: Keyframes,
    labels: LabelSource,
    free: int,
    cameras: bool,
    lidar: bool,
    history: int = 0,
    further: Callable[[Keyframe], Path] | None = None,
) -> Inventory:
    """Look at the files of keyframes, in parallel.

    Args:
        keyframes: what to look at.
        labels: where their labels are.
        free: id of the free class.
        cameras, lidar: whether images, and scans, are needed.
        history: of how many earlier keyframes of the scene images are needed, too.
        further: a file of a keyframe that is needed, too; None: none is.

    Raises:
        InputError: a file cannot be read, or a label file that was looked at is bad.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = pool.map(
            lambda i: _look_at(keyframes[i], keyframes.before(i, history), labels, cameras, lidar, further),
            range(len(keyframes)),
        )
        bar = tqdm(looks, "check files", len(keyframes), unit="keyframe", delay=_PATIENCE, disable=ranks.rank() > 0)
        found = dict(zip(keyframes.tokens, bar, strict=True))
    digests = {token: values for token, (values, _) in found.items()}
    left_out = {token: lacking for token, (_, lacking) in found.items() if lacking is not None}
    whole = keyframes.where([token not in left_out for token in keyframes.tokens])
    column = sources_of(keyframes.channels).index("labels")
    labelled = {token for token in whole.tokens if digests[token][column]}
    masks = _look_into(whole.where([token in labelled for token in whole.tokens]), labels, free)
    return Inventory(whole, left_out, frozenset(labelled), digests, masks, math.prod(labels.grid.shape))


def settle_missing(splits: dict[str, Inventory], missing: str, listing: Path, advice: str = "") -> None:
    """Say which keyframes were left out because files of theirs are absent or empty, or because they have no LiDAR.

    Args:
        splits: name -> what is there.
        missing: "error" or "skip".
        listing: where these files are listed, one a line.
        advice: what else would help who lacks scans.

    Raises:
        InputError: some were, and `missing` is "error".
    """
    # an image may be in the past of several
    files = {path: kind for stock in splits.values() for of in stock.left_out.values() for path, kind in of.items()}
    lacking = {name: sum(map(bool, stock.left_out.values())) for name, stock in splits.items()}
    without_lidar = {name: len(stock.left_out) - lacking[name] for name, stock in splits.items()}
    told = []
    if files:
        if ranks.rank() == 0:
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text("".join(f"{path}\n" for path in files))
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(files.values()).items())
        told.append(
            f"{_shares(lacking, splits)} lack files: {len(files)} are absent or empty ({kinds}), "
            f"first {next(iter(files))}, all listed in {listing}"
        )
    if any(without_lidar.values()):
        told.append(f"{_shares(without_lidar, splits)} have no LiDAR scan, which is asked for")
    if told and missing == "error":
        scans = any(without_lidar.values()) or LIDAR in files.values()
        some_are_whole = all(len(stock.keyframes) for stock in splits.values())
        skip = ", or leave these keyframes out with data.missing=skip" if some_are_whole else ""
        raise InputError(f"{'; '.join(told)}; get them{skip}{advice * scans}")
    if told and ranks.rank() == 0:
        print(f"left out: {'; '.join(told)}", flush=True)


def summary(splits: dict[str, Inventory], labels: LabelSource, others: dict[str, dict[str, str]]) -> str:
    """A table of what the splits hold, a row each.

    Args:
        splits: name -> what is there.
        labels: where the labels are.
        others: further columns: heading -> split -> entry.
    """
    heads = ["split", "keyframes", "whole", "labelled", *others, "visible voxels", "free of visible", "empty masks"]
    rows = [heads] + [_row(name, stock, others) for name, stock in splits.items()]
    if labels.grid == OCC3D:
        rows.append(["(Occ3D train)", *[""] * (2 + len(others) + 1), f"{_OCC3D_VISIBLE:.1%}", f"{_OCC3D_FREE:.1%}", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if labels.grid == OCC3D:
        lines += [line for name, stock in splits.items() for line in _suspicions(name, stock)]
    return "\n".join([*lines, *_without_cameras(splits), *_shared(splits)])


def place_of_labels(stock: Inventory, labels: LabelSource) -> str:
    """Where the labels of the first keyframe that may have some were looked for."""
    path = next((path for keyframe in stock.keyframes if (path := labels.path(keyframe)) is not None), None)
    return "no labels are configured for them" if path is None else f"looked for {path}"


def _shares(counts: dict[str, int], splits: dict[str, Inventory]) -> str:
    """How many keyframes of each split."""
    wholes = {name: len(stock.left_out) + len(stock.keyframes) for name, stock in splits.items()}
    return ", ".join(f"{count} of {wholes[name]} keyframes of {name}" for name, count in counts.items() if count)


def _row(name: str, stock: Inventory, others: dict[str, dict[str, str]]) -> list[str]:
    looked, (visible, free) = len(stock.masks), stock.masks.sum(0).tolist()
    empty = int((stock.masks[:, 0] == 0).sum())
    return [
        name,
        str(len(stock.keyframes) + len(stock.left_out)),
        str(len(stock.keyframes)),
        str(len(stock.labelled)),
        *(entries.get(name, "") for entries in others.values()),
        f"{visible / (looked * stock.voxels):.1%}" if looked else "-",
        f"{free / visible:.1%}" if visible else "-",
        f"{empty} of {looked} looked at" if looked else "-",
    ]


def _suspicions(name: str, stock: Inventory) -> Iterator[str]:
    """What masks say that those of Occ3D do not."""
    visible, free = stock.masks.sum(0).tolist()
    of_all, of_visible = visible / max(1, len(stock.masks) * stock.voxels), free / max(1, visible)
    if visible and not _PLAUSIBLE_VISIBLE[0] < of_all < _PLAUSIBLE_VISIBLE[1]:
        yield f"suspicious: mask_camera of {name} holds {of_all:.1%} of the voxels: does it say what cameras see?"
    if visible and not _PLAUSIBLE_FREE[0] < of_visible < _PLAUSIBLE_FREE[1]:
        yield f"suspicious: {of_visible:.1%} of the visible voxels of {name} are free: does the mask fit the labels?"


def _shared(splits: dict[str, Inventory]) -> Iterator[str]:
    for one, other in itertools.combinations(splits, 2):
        tokens = splits[one].digests.keys() & splits[other].digests.keys()
        if tokens:
            yield f"{len(tokens)} keyframes are in both {one} and {other}: what is scored on them was learned on them"


def _without_cameras(splits: dict[str, Inventory]) -> Iterator[str]:
    for name, stock in splits.items():
        for channel, count in stock.keyframes.absent_cameras.items():
            yield f"{count} of {len(stock.keyframes)} keyframes of {name} have no {channel}"


def _look_at(
    keyframe: Keyframe,
    past: Sequence[Keyframe],
    labels: LabelSource,
    cameras: bool,
    lidar: bool,
    further: Callable[[Keyframe], Path] | None,
) -> tuple[np.ndarray, dict[Path, str] | None]:
    """The digests of a keyframe, and its files, and images of its past, that are needed, but absent or empty.

    None: it is whole; empty: it needs a scan that the data do not name. See `Inventory.left_out`.
    """
    label_file = labels.path(keyframe)
    files = {camera.channel: camera.path for camera in keyframe.cameras} | {LIDAR: keyframe.lidar_path}
    digests = {channel: _file_digest(path) for channel, path in files.items()}
    digest_of_labels = _file_digest(label_file)
    needed = [channel for channel in files if (lidar if channel == LIDAR else cameras)]
    lacking = {path: channel for channel in needed if (path := files[channel]) is not None and not digests[channel]}
    if label_file is not None and not digest_of_labels and label_file.exists():
        lacking[label_file] = "labels"
    for camera in (camera for each in past for camera in each.cameras if cameras):
        if camera.path is not None and not (camera.path.exists() and camera.path.stat().st_size):
            lacking[camera.path] = camera.channel
    values = [*digests.values(), _calibration_digest(keyframe), digest_of_labels]
    if further is not None:
        values.append(_file_digest(path := further(keyframe)))
        lacking |= {} if values[-1] else {path: "of the teacher"}
    whole = not lacking and not (lidar and keyframe.lidar_path is None)
    return np.array(values, np.uint32), None if whole else lacking


def _file_digest(path: Path | None) -> int:
    """Of a file's size and the block in its middle; 0 for a file that is absent or empty."""
    if path is None:
        return 0
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, (size - _BLOCK) // 2))
            return _digest(size.to_bytes(8, "little") + file.read(_BLOCK)) if size else 0
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): mend it, or remove it") from error


def _calibration_digest(keyframe: Keyframe) -> int:
    cameras = [camera for camera in keyframe.cameras if camera.path is not None]
    numbers = [] if keyframe.lidar2ego is None else [keyframe.lidar2ego]
    numbers.append(keyframe.ego2global)
    numbers += [part for camera in cameras for part in (camera.intrinsics, camera.cam2ego, camera.ego2global)]
    # another machine may compute the last bits of a rotation otherwise; + 0.0 turns -0.0 into 0.0
    rounded = np.concatenate([part.ravel() for part in numbers]).round(5) + 0.0
    return _digest(rounded.astype("<f8").tobytes())


def _digest(content: bytes) -> int:
    return google_crc32c.value(content) or 1  # 0 stands for "absent"


def _look_into(keyframes: Sequence[Keyframe], labels: LabelSource, free: int) -> np.ndarray:
    """Visible voxels, and free ones among them, of some label files spread over the keyframes; int64 (L, 2)."""
    chosen = np.unique(np.linspace(0, len(keyframes) - 1, min(LOOKED_AT, len(keyframes))).astype(int))
    counts = []
    for index in chosen.tolist():
        found = labels.read(keyframes[index])
        assert found is not None
        visible = found["mask_camera"]
        counts.append((np.count_nonzero(visible), np.count_nonzero(visible & (found["semantics"] == free))))
    return np.array(counts, np.int64).reshape(-1, 2)
