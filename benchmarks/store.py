"""What storing one keyframe costs: our store against the prototype's compressed float16 file, on the same output; and
25 600 Gaussians that have nothing in common.

    python benchmarks/store.py                     a synthetic teacher (--seed)
    python benchmarks/store.py --input logits.npy  a real one: logits or log-probabilities (X, Y, Z, C), float

Times are the best of several runs on one core, from files in the page cache.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import zarr

from distill.classes import OCC3D_CLASSES
from distill.frame import Frame
from distill.gaussians import Gaussians
from distill.grids import OCC3D, SURROUNDOCC
from distill.signals import GaussianKind, Signal, TeacherPrediction, described
from distill.signals.bev import Bev
from distill.signals.gaussians import GaussianSet, decode_gaussians, encode_gaussians
from distill.signals.voxels import Voxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from student.evaluation.cost import cpu_name

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


def best_ms(work: Callable[[], object], repeats: int = 25) -> float:
    """Shortest of several runs, milliseconds, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def kl(teacher: torch.Tensor, decoded: torch.Tensor, temperature: float) -> float:
    """Mean KL(teacher || decoded) over voxels at a temperature, nats."""
    p, q = ((values.double() / temperature).log_softmax(-1) for values in (teacher, decoded))
    return float((p.exp() * (p - q)).sum(-1).mean())


def open_writer(path: Path, signals: Sequence[Signal]) -> StoreWriter:
    """A store of one keyframe."""
    identity = StoreIdentity("benchmark", "", {}, OCC3D, signals[0].classes, described(signals))
    return StoreWriter.open(path, identity, [TOKEN], ["scene-0000"])


def measure(log_probs: torch.Tensor, folder: Path) -> None:
    """Print the table."""
    names = OCC3D_CLASSES.names[: log_probs.shape[-1]]
    signals: tuple[Signal, ...] = (Voxels(OCC3D, names), Bev(OCC3D, names))
    writer = open_writer(folder / "teacher.zarr", signals)
    prediction = TeacherPrediction(log_probs.unsqueeze(0))
    said = {signal.name: signal.say(prediction, Frame(), free=len(names) - 1)[0] for signal in signals}
    classes, everywhere = log_probs.argmax(-1).to(torch.uint8).numpy(), np.ones(OCC3D.shape, bool)
    write_ms = best_ms(lambda: writer.write(TOKEN, said, classes, everywhere, np.zeros(8, np.uint32)), repeats=3)
    store = TeacherStore(writer.store.path)

    file, channels_first = folder / "prototype.npz", log_probs.permute(3, 0, 1, 2).numpy().astype(np.float16)
    npz_ms = best_ms(lambda: np.savez_compressed(file, logits=channels_first), repeats=1)
    plain = zarr.open_array(store.path / "voxel_logits", mode="r")
    sizes = {name: (store.path / array.chunk(0)).stat().st_size for name, array in store.arrays.items()}

    print(f"{'':38s}{'MB':>8s}{'write ms':>10s}{'read ms':>9s}")
    rows: tuple[tuple[str, int, str, Callable[[], object]], ...] = (
        ("prototype: savez_compressed float16", file.stat().st_size, f"{npz_ms:.0f}", lambda: np.load(file)["logits"]),
        ("voxel_logits, to uint8 codes", sizes["voxel_logits"], "", lambda: store.told(TOKEN, ["voxels"], False)),
        ("voxel_logits, to float16, plain zarr", sizes["voxel_logits"], "", lambda: plain[0]),
        ("bev_probs", sizes["bev_probs"], "", lambda: store.told(TOKEN, ["bev"], False)),
        ("voxel_semantics", sizes["voxel_semantics"], "", lambda: store.semantics(TOKEN)),
        ("voxel_coverage", sizes["voxel_coverage"], "", lambda: store.coverage(TOKEN)),
    )
    for name, size, written, read in rows:
        print(f"{name:38s}{size / 1e6:8.2f}{written:>10s}{best_ms(read):9.1f}")
    print(f"{'sample, all these arrays, fsynced':38s}{sum(sizes.values()) / 1e6:8.2f}{write_ms:10.0f}")
    voxels = store.told(TOKEN, ["voxels"], False).signals["voxels"]
    decoded = torch.from_numpy(voxels.table[voxels.codes])
    for temperature in (1, 2):
        print(f"mean KL(teacher || stored), T={temperature}: {kl(log_probs, decoded, temperature):.1e} nats")


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
    array = open_writer(folder / "gaussians.zarr", [signal]).store.arrays["gaussians"]
    chunk = array.pack(encode_gaussians(gaussians, kind))
    read_ms = best_ms(lambda: decode_gaussians(array.unpack(chunk), kind))
    write_ms = best_ms(lambda: array.pack(encode_gaussians(gaussians, kind)), repeats=3)
    print(f"{'gaussians':38s}{len(chunk) / 1e6:8.2f}{write_ms:10.0f}{read_ms:9.1f}")
    points = torch.from_numpy(OCC3D.centres()[::4, ::4].reshape(-1, 3)).float()
    teacher, read = (g.log_probs(points) for g in (gaussians, decode_gaussians(array.unpack(chunk), kind)))
    print(f"mean KL(teacher || rendered from stored Gaussians), T=1: {kl(teacher, read, 1):.1e} nats")


def main() -> None:
    """Measure on the chosen teacher output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logits = torch.from_numpy(np.load(options.input)) if options.input else synthetic_logits(options.seed)
    source = options.input or f"synthetic, seed {options.seed}"
    print(f"{source}, {tuple(logits.shape)}; one core of {os.cpu_count()}, {cpu_name()}")
    with tempfile.TemporaryDirectory() as folder:
        measure(logits.float().log_softmax(-1), Path(folder))
        measure_gaussians(random_gaussians(options.seed), Path(folder))


if __name__ == "__main__":
    main()
