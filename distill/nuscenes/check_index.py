"""Check an index of frames of your own (data=rig): every fault with its place, and every file that is not there.

    python -m distill.nuscenes.check_index frames.json

Its format is in docs/own_data.md and, for editors and other programs, in rig_index.schema.json beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from distill.command import script
from distill.errors import InputError
from distill.nuscenes.records import KeyframeEntry
from distill.nuscenes.rig import Reading, cameras_of_rig, entries_of, read_rig

_THREADS = 16  # they wait for the disk
_PATIENCE = 2.0  # seconds until the progress bar appears


def faults_of_files(entries: dict[str, KeyframeEntry], root: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with the files of keyframes, with the places of these in the index.

    Args:
        entries: by place.
        root: what paths are relative to.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda entry: list(_of_keyframe(entry, root)), entries.values())
        for place, faults in zip(entries, tqdm(found, "check files", len(entries), delay=_PATIENCE), strict=True):
            yield from ((place, fault) for fault in faults)


def _of_keyframe(entry: KeyframeEntry, root: Path) -> Iterator[str]:
    for name, camera in entry.cameras.items():
        file = root / camera.path
        fault = _absent(file)
        if fault is None:
            try:
                with Image.open(file) as image:
                    size = image.size
                if size != (camera.width, camera.height):
                    fault = f"{size[0]}x{size[1]} pixels, calibrated are {camera.width}x{camera.height}"
            except (OSError, ValueError, SyntaxError) as error:  # Pillow's for damaged files
                fault = f"cannot be opened ({error})"
        if fault is not None:
            yield f"cameras.{name}.path: {file}: {fault}"
    for name, path in (("lidar.path", entry.lidar_path), ("labels", entry.labels)):
        if path and (fault := _absent(root / path)) is not None:
            yield f"{name}: {root / path}: {fault}"


def _absent(file: Path) -> str | None:
    try:
        return None if file.stat().st_size else "is empty"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def told_of(reading: Reading, entries: dict[str, KeyframeEntry]) -> str:
    """What a faultless index holds, in a few lines."""
    assert reading.header is not None
    frames = list(entries.values())
    scenes = {frame.scene for frame in frames}
    splits = ", ".join(
        f"{name} ({sum(frame.scene in names for frame in frames)})" for name, names in reading.header.splits.items()
    )
    return "\n".join(
        [
            f"{reading.file}: {len(frames)} frames of {len(scenes)} scenes",
            f"cameras: {', '.join(cameras_of_rig(reading))}",
            f"splits: {splits or 'none; data.train_split=all takes every frame'}",
            f"LiDAR: {sum(bool(frame.lidar_path) for frame in frames)} frames; "
            f"labels: {sum(bool(frame.labels) for frame in frames)} frames",
        ]
    )


@script
def main() -> None:
    """Check one index from the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.nuscenes.check_index", description=__doc__)
    parser.add_argument("index", type=Path, help="frames.json or frames.jsonl")
    parser.add_argument("--root", type=Path, help="what paths are relative to, as data.root= (default: its folder)")
    args = parser.parse_args()
    reading = read_rig(args.index)
    entries = entries_of(reading)
    in_files = list(faults_of_files(entries, args.root or args.index.parent))
    for place, fault in [*reading.faults, *in_files]:
        print(f"{args.index}: {place}: {fault}")
    if count := len(reading.faults) + len(in_files):
        skip = f" ({len(in_files)} about files: data.missing=skip leaves out frames that lack some)" if in_files else ""
        raise InputError(f"{args.index}: {count} faults, listed above{skip}")
    print(told_of(reading, entries))


if __name__ == "__main__":
    main()
