"""What a teacher store is, in words and numbers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from distill.signals import Signal
from distill.signals.divergence import TEMPERATURES
from distill.store.convert import in_words
from distill.store.reader import TeacherStore
from distill.store.sample import DamagedSample
from distill.store.schema import read_whole


def report(store: TeacherStore, threads: int) -> str:
    """Who speaks in a store, about what, in how many bytes, and how exactly; of its present keyframes."""
    identity, grid = store.identity, store.grid
    checkpoint = f"checkpoint {identity.checkpoint_sha256[:8]}" if identity.checkpoint_sha256 else "no checkpoint"
    facts = {
        "teacher": f"{identity.teacher} ({checkpoint})",
        "grid": f"{grid.name}: {' x '.join(map(str, grid.shape))} voxels of {grid.voxel_size} m, {grid.frame} frame",
        "classes": f"{len(identity.classes)}: {', '.join(identity.classes)}",
        "signals": "; ".join(_signal_in_words(signal) for signal in store.signals.values()),
        "keeps": f"{identity.keep} voxels",
        "made of": "; ".join(store.made_of),
        "keyframes": _keyframes(store),
    }
    head = [f"{store.path}: {in_words(store)}", *(f"{name:12s}{told}" for name, told in facts.items() if told)]
    with ThreadPoolExecutor(threads) as pool:
        return "\n".join([*head, "", *_sizes(store, pool), *_exactness(store, pool)])


def _signal_in_words(signal: Signal) -> str:
    step = getattr(signal, "step", None)
    return f"{signal.name} ({type(signal).__name__}{'' if step is None else f', steps of {step} nats'})"


def _keyframes(store: TeacherStore) -> str:
    """How many are present, and in how many scenes."""
    scenes = [str(scene) for scene in read_whole(store.place, "scenes")]
    of_scene = Counter(scenes)
    present = Counter(scene for token, scene in zip(store.tokens, scenes, strict=True) if token in store.present)
    whole = sum(present[scene] == count for scene, count in of_scene.items())
    partly, missing = len(present) - whole, len(store.tokens) - len(store.present)
    return (
        f"{len(store.present)} of {len(store.tokens)}, {missing} missing; of {len(of_scene)} scenes {whole} are whole, "
        f"{partly} partly there, {len(of_scene) - len(present)} absent{_packed(store)}"
    )


def _packed(store: TeacherStore) -> str:
    """How many keyframes are in packs, if any."""
    layout = store.layout
    count = int((layout.present & ~layout.loose).sum())
    return f"; {count} in {len(layout.packs)} packs" if count else ""


def _sizes(store: TeacherStore, pool: ThreadPoolExecutor) -> list[str]:
    """A table of bytes."""
    found = store.sizes(pool.map)
    sizes = {name: found[name] for name in store.arrays}
    heads = f"{'array':20s}{'bytes per keyframe':>20s}{'MB':>12s}"
    count, total = max(len(store.present), 1), sum(sizes.values())
    table = [f"{name:20s}{size / count:20.0f}{size / 1e6:12.2f}" for name, size in {**sizes, "all": total}.items()]
    return [heads, *table]


def _exactness(store: TeacherStore, pool: ThreadPoolExecutor) -> list[str]:
    """A table of divergences, and the steps of coefficients."""
    lines: list[str] = []
    kl_N23 = _present(store, "voxel_kl", pool)
    if len(kl_N23):
        temperatures = "".join(f"{f'T={temperature}':>12s}" for temperature in TEMPERATURES)
        means, largest = kl_N23[:, 0].mean(0, np.float64), kl_N23[:, 1].max(0)
        lines += ["", f"{'KL, nats':20s}{temperatures}"]
        lines += [
            f"{name:20s}{''.join(f'{x:12.2e}' for x in row)}" for name, row in (("mean", means), ("maximum", largest))
        ]
    steps = Counter(_present(store, "column_step", pool).ravel().tolist())
    if steps:
        counts = ", ".join(f"{step:g} of {count} keyframes" for step, count in sorted(steps.items(), reverse=True))
        lines += ["", f"steps, nats: {counts}"]
    return lines


def _present(store: TeacherStore, name: str, pool: ThreadPoolExecutor) -> np.ndarray:
    """What a small array holds of all present keyframes that are not damaged there; of a store without it, nothing."""
    if name not in store.arrays:
        return np.empty(0, np.float32)
    array = store.arrays[name]

    def read(token: str) -> np.ndarray | None:
        try:
            return array.unpack(store.chunk(token, name))
        except DamagedSample:
            return None

    found = [values for values in pool.map(read, sorted(store.present)) if values is not None]
    return np.stack(found) if found else np.empty(0, np.float32)
