"""What storing one keyframe costs: each encoding of our store against the prototype's compressed float16 file, on the
same output; and 25 600 Gaussians that have nothing in common.

    python benchmarks/store.py                   a synthetic teacher (--seed)
    python benchmarks/store.py --demo data/demo  the demo teacher, on the demo world there

Bases are fitted to one keyframe, another is measured. Times are the best of several runs on one core: of writing as the
clock has it, of reading files in the page cache what the processor spends.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from distill.classes import OCC3D_CLASSES
from distill.frame import Frame, stack
from distill.gaussians import Gaussians
from distill.grids import OCC3D, SURROUNDOCC
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset
from distill.signals import GaussianKind, Signal, TeacherPrediction, described
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.gaussians import GaussianSet, decode_gaussians, encode_gaussians
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.store.keeping import encoded, kept
from student.evaluation.cost import cpu_name
from teacher_dump.border import ask, open_teacher

TOKEN = "0" * 32


def smooth_noise(generator: torch.Generator, shape: tuple[int, ...], cell: float) -> torch.Tensor:
    """Noise of unit deviation that changes over `cell` voxels."""
    coarse = torch.randn(1, 1, *(int(size / cell) + 2 for size in shape), generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    noise = torch.nn.functional.interpolate(coarse, shape, mode=mode, align_corners=True)[0, 0]
    return noise / noise.std()


def synthetic_logits(seed: int) -> torch.Tensor:
    """Logits (X, Y, Z, C) like a network's: confident air, fuzzy ground, walls and objects, noise in all classes."""
    generator = torch.Generator().manual_seed(seed)
    x, y, z = OCC3D.shape
    above_ground = torch.arange(z) - (3 + smooth_noise(generator, (x, y), 40)).unsqueeze(-1)
    logits = torch.zeros(*OCC3D.shape, len(OCC3D_CLASSES))
    for index, name in enumerate(OCC3D_CLASSES.names):
        plan = smooth_noise(generator, (x, y), 12).unsqueeze(-1)
        if name == "free":
            logits[..., index] = 5 + 2.5 * above_ground.clamp(-1, 3)
        elif name in ("driveable_surface", "other_flat", "sidewalk", "terrain"):
            logits[..., index] = (6 + 4 * plan) * (-(above_ground**2)).exp()
        else:
            tall = 12 if name in ("manmade", "vegetation") else 3
            logits[..., index] = 8 * (plan - 1.5).clamp(0, 1.5) * ((above_ground > 0) & (above_ground < tall)) - 2
        logits[..., index] += 0.8 * smooth_noise(generator, OCC3D.shape, 4) + 0.3 * smooth_noise(
            generator, OCC3D.shape, 1.5
        )
    return logits


def best_ms(work: Callable[[], object], repeats: int = 25, clock: Callable[[], float] = time.process_time) -> float:
    """Shortest of several runs, milliseconds, after one to warm up: of processor time, which no neighbour lengthens."""
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return 1e3 * min(times)


def kl(teacher: torch.Tensor, decoded: torch.Tensor, temperature: float) -> float:
    """Mean KL(teacher || decoded) over voxels at a temperature, nats."""
    p, q = ((values.double() / temperature).log_softmax(-1) for values in (teacher, decoded))
    return float((p.exp() * (p - q)).sum(-1).mean())


def demo_teacher(root: str) -> list[tuple[Frame, TeacherPrediction]]:
    """What the demo teacher says of two keyframes of different scenes, with their labels and masks."""
    with initialize_config_module("conf", version_base=None):
        config = compose("dump", [f"data.root={root}"])
    index, classes = open_dataroot(config.data), instantiate(config.classes)
    teacher = open_teacher(config.teacher)
    tokens = index.keyframes(config.data.val_split).tokens
    keyframes = index.select([tokens[0], tokens[-1]])
    labels = open_labels(config.data, teacher.grid)
    frames = FrameDataset(keyframes, labels=labels, augmentation=None, seed=0, **teacher.inputs)
    batches = [stack([frames[position]]) for position in range(2)]
    return [(frame, ask(teacher, frame, classes, torch.device("cpu"))) for frame in batches]


def synthetic_teacher(seed: int) -> list[tuple[Frame, TeacherPrediction]]:
    """Two keyframes of a teacher whose voxels no linear head has made; no camera sees anything."""
    nothing = Frame(
        token=[TOKEN],
        labelled=torch.ones(1, dtype=torch.bool),
        mask_camera=torch.zeros(1, *OCC3D.shape, dtype=torch.bool),
    )
    logits = [synthetic_logits(each) for each in (seed + 1, seed)]
    return [(nothing, TeacherPrediction(each.log_softmax(-1).unsqueeze(0))) for each in logits]


def signals_by(encoding: str, keep: str, first: tuple[Frame, TeacherPrediction]) -> list[Signal]:
    """Signals of voxels and columns, fitted to a keyframe."""
    asked = OmegaConf.create({"encoding": encoding, "step": 0.25, "keep": keep})
    levels: list[Signal] = [LevelVoxels(OCC3D, OCC3D_CLASSES.names), LevelBev(OCC3D, OCC3D_CLASSES.names)]
    return encoded(levels, asked, lambda: first)[0]


def measure(encoding: str, keep: str, said_of: list[tuple[Frame, TeacherPrediction]], folder: Path) -> None:
    """Print the rows of an encoding."""
    first, (frame, prediction) = said_of
    signals, path, free = signals_by(encoding, keep, first), folder / f"{encoding}-{keep}.zarr", len(OCC3D_CLASSES) - 1
    identity = StoreIdentity("benchmark", "", {}, OCC3D, OCC3D_CLASSES.names, described(signals), keep=keep)
    StoreWriter.create(path, identity, [TOKEN], ["scene-0000"], signals)
    writer = StoreWriter.open(path, identity, [TOKEN], ["scene-0000"])
    prediction = kept(prediction, frame, keep, whole_columns=encoding == "columns")
    said = {signal.name: signal.say(prediction, frame, free)[0] for signal in signals}
    everywhere = np.ones(OCC3D.shape, bool)
    kept_XYZ = everywhere if prediction.kept_BXYZ is None else prediction.kept_BXYZ[0].numpy()
    semantics = prediction.semantics(free)[0].numpy()
    sample = TOKEN, said, semantics, everywhere, np.ones(8, np.uint32), kept_XYZ
    write_ms = best_ms(lambda: writer.write(*sample), 5, time.perf_counter)  # it waits for the disk
    store = TeacherStore(path)
    sizes = {name: (path / array.chunk(0)).stat().st_size / 1e6 for name, array in store.arrays.items()}
    voxels_mb = sum(sizes[array.name] for array in store.signals["voxels"].arrays())
    bev_mb = sum(sizes[array.name] for array in store.signals["bev"].arrays())
    needed = ["voxels", "bev"], "covered" not in store.signals["voxels"].answers, keep != "all"
    read_ms, told = best_ms(lambda: store.told(TOKEN, *needed)), stack([store.told(TOKEN, *needed)])
    travels = [each for record in (told, *told.signals.values()) for each in vars(record).values()]
    travels_mb = sum(each.nbytes for each in travels if isinstance(each, torch.Tensor)) / 1e6
    place_V = torch.from_numpy(kept_XYZ).flatten().nonzero().squeeze(1)
    listener = store.signals["voxels"].listen(told.signals["voxels"], frame, OCC3D, free, frozenset())
    teacher_VC, decoded_VC = prediction.voxel_log_probs_BXYZC.flatten(0, 3)[place_V], listener.voxels(place_V)
    missed = " / ".join(f"{kl(teacher_VC, decoded_VC, temperature):.1e}" for temperature in (1, 2, 4))
    row(f"{encoding}, {keep}", voxels_mb, bev_mb, sum(sizes.values()), write_ms, read_ms, travels_mb, missed)


def row(name: str, *cells: object) -> None:
    """Print a row of the table."""
    numbers = [f"{cell:10.0f}" if index == 3 else f"{cell:10.2f}" for index, cell in enumerate(cells[:6])]
    print(f"{name:18s}{''.join(numbers)}   {''.join(map(str, cells[6:]))}")


def measure_prototype(prediction: TeacherPrediction, folder: Path) -> None:
    """Print the row of what the store replaces."""
    file = folder / "prototype.npz"
    channels_first = prediction.voxel_log_probs_BXYZC[0].permute(3, 0, 1, 2).numpy().astype(np.float16)
    write_ms = best_ms(lambda: np.savez_compressed(file, logits=channels_first), repeats=1)
    size = file.stat().st_size / 1e6
    read_ms = best_ms(lambda: np.load(file)["logits"], repeats=5)
    row("savez_compressed", size, 0, size, write_ms, read_ms, channels_first.nbytes / 1e6)


def random_gaussians(seed: int, count: int = 25600) -> Gaussians:
    """Random in every number: nothing compresses better than it must."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    lower, size = torch.tensor([-50.0, -50.0, -5.0]), torch.tensor([100.0, 100.0, 8.0])
    return Gaussians(
        lower + torch.rand(count, 3, generator=generator) * size,
        0.01 + 1.79 * normal(count, 3).sigmoid(),
        torch.nn.functional.normalize(normal(count, 4), dim=1),
        normal(count).sigmoid(),
        torch.nn.functional.pad(normal(count, 17).softmax(1), (0, 1)),
        "probabilistic",
        4.0,
        "stable",
        SURROUNDOCC,
    )


def measure_gaussians(gaussians: Gaussians, folder: Path) -> None:
    """Print the row of the Gaussians, and what the voxels rendered from them lose."""
    kind = GaussianKind(len(gaussians.means_G3), gaussians.form, gaussians.reach, gaussians.det, gaussians.space)
    signal = GaussianSet(OCC3D, OCC3D_CLASSES.names, kind)
    (array,) = signal.arrays()
    chunk = array.pack(encode_gaussians(gaussians, kind))
    read_ms = best_ms(lambda: decode_gaussians(array.unpack(chunk), kind))
    write_ms = best_ms(lambda: array.pack(encode_gaussians(gaussians, kind)), repeats=3)
    size, travels = len(chunk) / 1e6, encode_gaussians(gaussians, kind).nbytes / 1e6
    row("gaussians", size, 0, size, write_ms, read_ms, travels)
    points = torch.from_numpy(OCC3D.centres()[::4, ::4].reshape(-1, 3)).float()
    teacher, read = (g.log_probs(points) for g in (gaussians, decode_gaussians(array.unpack(chunk), kind)))
    print(f"mean KL(teacher || rendered from stored Gaussians), T=1: {kl(teacher, read, 1):.1e} nats")


def main() -> None:
    """Measure on the chosen teacher output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", metavar="ROOT")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    said_of = demo_teacher(options.demo) if options.demo else synthetic_teacher(options.seed)
    source = f"demo teacher, {options.demo}" if options.demo else f"synthetic, seed {options.seed}"
    print(f"{source}; one core of {os.cpu_count()}, {cpu_name()}")
    heads = ("voxels MB", "BEV MB", "all MB", "write ms", "read ms", "travel MB")
    print(f"{'':18s}{''.join(f'{head:>10s}' for head in heads)}   mean KL at T = 1 / 2 / 4")
    with tempfile.TemporaryDirectory() as folder:
        measure_prototype(said_of[1][1], Path(folder))
        for keep in ("all", "visible") if options.demo else ("all",):
            for encoding in ("fine", "columns", "levels"):
                measure(encoding, keep, said_of, Path(folder))
        measure_gaussians(random_gaussians(options.seed), Path(folder))


if __name__ == "__main__":
    main()
