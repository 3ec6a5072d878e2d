"""Making the demo world once: a pool over keyframes, a manifest written last, safe against kills and company."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from distill.demo.keyframe import KeyframeFacts, SceneId, write_keyframe
from distill.demo.scene import Scene
from distill.demo.tables import add_scene, shared_tables, write_tables
from distill.errors import InputError
from distill.files import one_at_a_time

GENERATOR_VERSION = 3  # raise it whenever the same configuration would give other bytes
MANIFEST = "world.json"


@dataclass(frozen=True)
class WorldConfig:
    """What a demo world looks like; the same values give the same bytes.

    Attributes:
        seed: of everything in it.
        train_scenes, val_scenes: scenes per split, each in a town of its own.
        keyframes_per_scene: keyframes at 2 Hz.
        image_size: (width, height), pixels; calibration scales along.
        jpeg_quality: 1 to 95.
    """

    seed: int
    train_scenes: int
    val_scenes: int
    keyframes_per_scene: int
    image_size: tuple[int, int]
    jpeg_quality: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))  # configs give lists

    def scenes(self) -> list[SceneId]:
        """All scenes, train first."""
        counts = (("train", self.train_scenes), ("val", self.val_scenes))
        return [SceneId(self.seed, split, number) for split, count in counts for number in range(count)]

    def manifest(self) -> dict[str, object]:
        """What the manifest of this world says."""
        return {"generator": GENERATOR_VERSION, **asdict(self), "image_size": list(self.image_size)}


def ensure_world(root: Path, config: WorldConfig, workers: int) -> None:
    """Make the demo world at `root` unless it is there already.

    The world is made in a hidden sibling folder and renamed when complete, so a killed run leaves no half world;
    processes that start together wait for the first one.

    Args:
        root: dataroot to make.
        config: what to make.
        workers: processes that render; 1 renders in this process.

    Raises:
        InputError: `root` holds something else (another world, or files that are not a world) or cannot be written.
    """
    _check_config(config)
    root = root.absolute()
    if _is_ready(root, config):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root.with_name(f".{root.name}.lock")):
            if not _is_ready(root, config):
                _make(root, config, workers)
    except OSError as error:
        raise InputError(
            f"{root}: cannot write the demo world ({error}): free some space or choose another root"
        ) from error


def _make(root: Path, config: WorldConfig, workers: int) -> None:
    building = root.with_name(f".{root.name}.building")
    if building.exists():
        shutil.rmtree(building)
    building.mkdir()
    print(f"making the demo world in {root}, once (minutes)", file=sys.stderr)
    _generate(building, config, workers)
    if root.exists():
        root.rmdir()
    os.replace(building, root)


def _check_config(config: WorldConfig) -> None:
    counts = (config.train_scenes, config.val_scenes)
    if min(counts) < 0 or sum(counts) < 1 or min(config.keyframes_per_scene, *config.image_size) < 1:
        raise InputError(f"data.world: scenes, keyframes and image_size must be positive, got {config}: correct them")
    if not 1 <= config.jpeg_quality <= 95:
        raise InputError(f"data.world: jpeg_quality is {config.jpeg_quality}: give 1 to 95")


def _is_ready(root: Path, config: WorldConfig) -> bool:
    """Whether the wanted world is at `root`; refuses a folder that holds anything else."""
    if not root.exists():
        return False
    file = root / MANIFEST
    if file.is_file():
        if json.loads(file.read_text()) == config.manifest():
            return True
        raise InputError(f"{root}: a demo world made with other settings: delete it or choose another root")
    if not root.is_dir() or any(root.iterdir()):
        raise InputError(f"{root}: exists and is not a demo world: choose an empty or new folder as root")
    return False


def _generate(root: Path, config: WorldConfig, workers: int) -> None:
    tasks = [(root, config, scene, k) for scene in config.scenes() for k in range(config.keyframes_per_scene)]
    facts: dict[tuple[SceneId, int], KeyframeFacts] = {}
    with tqdm(total=len(tasks), desc="demo world", unit="keyframe") as bar:
        for scene, keyframe, fact in _rendered(tasks, workers):
            facts[scene, keyframe] = fact
            bar.update()
    tables = shared_tables()
    for scene in config.scenes():
        add_scene(tables, scene, [facts[scene, k] for k in range(config.keyframes_per_scene)], config.image_size)
    splits = {split: [s.name for s in config.scenes() if s.split == split] for split in ("train", "val")}
    write_tables(root, tables, splits)
    (root / MANIFEST).write_text(json.dumps(config.manifest(), indent=1))


_Task = tuple[Path, WorldConfig, SceneId, int]
_Rendered = tuple[SceneId, int, KeyframeFacts]


def _rendered(tasks: list[_Task], workers: int) -> Iterator[_Rendered]:
    """Render all tasks. The first one runs here: forked workers inherit its compiled kernels."""
    yield _render(tasks[0])
    if workers == 1:
        yield from map(_render, tasks[1:])
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
    try:
        for future in as_completed([pool.submit(_render, task) for task in tasks[1:]]):
            yield future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "demo world: a rendering process was killed, out of memory? Free some and start again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _render(task: _Task) -> _Rendered:
    root, config, identity, keyframe = task
    scene = _scene(identity, config)
    return identity, keyframe, write_keyframe(root, identity, scene, keyframe, config.jpeg_quality)


@lru_cache(maxsize=1)
def _scene(identity: SceneId, config: WorldConfig) -> Scene:
    return Scene(identity.entropy, identity.number, config.keyframes_per_scene, config.image_size)
