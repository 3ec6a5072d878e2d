"""What KL(teacher || student) costs from what a store keeps: forward and backward of one batch, and peak memory.

    python benchmarks/stored_kl.py [--device cuda] [--threads 1] [--batch 1] [--seed 0]

`chain` looks levels up or multiplies columns, gathers the student's rows, and lets autograd do the rest, which is what
the CPU runs; `fused` is the Triton twin of kernels/stored_kl. Of a linear head of 48 channels, by each encoding; on the
voxels that cameras show (87 000 of a keyframe), and on all. Memory is beside the student's logits and what has
travelled, and beside their gradient. `floor` is how long the GPU takes to copy as many bytes as must move: the rows of
student and teacher once, and the gradient of all logits.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
from terms import taught_keyframe
from torch import Tensor

from distill.classes import OCC3D_CLASSES
from distill.frame import stack
from distill.grids import OCC3D
from distill.signals import ENCODINGS, Signal
from distill.signals.columns import ColumnVoxels, CoveredVoxels
from distill.signals.voxels import Voxels
from kernels.dispatch import only
from kernels.stored_kl import Coefficients, Levels, stored_kl
from student.evaluation.cost import device_name, milliseconds, peak_bytes

TEMPERATURE, CHANNELS, REPEATS = 2.0, 48, 7
CLASSES = len(OCC3D_CLASSES)


class Encoded:
    """Reads what a signal has encoded, as a store would."""

    def __init__(self, signal: Signal, said: object) -> None:
        arrays = {array.name: array for array in signal.arrays()}
        self.values = {name: (arrays[name], arrays[name].pack(each)) for name, each in signal.encode(said).items()}

    def __call__(self, name: str) -> np.ndarray:
        """What an array holds."""
        if name == "voxel_coverage":
            return np.ones(OCC3D.shape, bool)
        array, chunk = self.values[name]
        return array.unpack(chunk)

    def slices(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The same without slices of zeros."""
        array, chunk = self.values[name]
        return array.unpack_slices(chunk)


def said_by_a_head(seed: int) -> CoveredVoxels:
    """Logits of columns, linear in smooth features."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, CHANNELS, 25, 25, generator=random)
    features = torch.nn.functional.interpolate(coarse, OCC3D.shape[:2], mode="bilinear")[0]
    weights = torch.randn(CHANNELS, OCC3D.shape[2] * CLASSES, generator=torch.Generator().manual_seed(0)) / 2
    logits = (features.permute(1, 2, 0) @ weights).view(*OCC3D.shape, CLASSES)
    return CoveredVoxels(logits.log_softmax(-1).numpy(), np.ones(OCC3D.shape, bool))


def encodings(seed: int) -> Iterator[tuple[str, Signal, Encoded]]:
    """Name, signal, and one keyframe by it."""
    said = said_by_a_head(seed)
    for name in ENCODINGS:
        kind = ENCODINGS[name]["voxels"]
        if issubclass(kind, ColumnVoxels):
            signal: Signal = kind.fitted(said_by_a_head(seed + 1), 0.25, OCC3D, OCC3D_CLASSES.names)
        else:
            signal = kind(OCC3D, OCC3D_CLASSES.names)
        yield name, signal, Encoded(signal, said.log_probs_XYZC if isinstance(signal, Voxels) else said)


def floor_ms(kept: Levels | Coefficients, student_MC: Tensor) -> float:
    """How long it takes to copy as many bytes as must move, milliseconds."""
    rows = len(kept.index_V)
    if isinstance(kept, Levels):
        of_teacher = rows * CLASSES
    else:
        columns = len((kept.index_V // OCC3D.shape[2]).unique())
        of_teacher = columns * (kept.low_BkN.shape[1] + kept.high_BhN.shape[1]) + kept.vectors_BkZC.nbytes
    moved = of_teacher + rows * (8 + 2 * 4 + CLASSES * student_MC.element_size()) + student_MC.nbytes
    source = torch.empty(moved // 2, dtype=torch.uint8, device=student_MC.device)
    return min(milliseconds(source.clone, student_MC.device, 3, 10))


def step(twin: str, listen: Callable[[], Levels | Coefficients], student: Tensor) -> Callable[[], None]:
    """One forward and backward pass by a twin, of a teacher who has just been heard."""

    def run() -> None:
        kept = listen()
        with only(twin):
            kl_V = stored_kl(student.flatten(0, -2), kept, TEMPERATURE, kept.index_V)
            torch.autograd.grad(kl_V.mean(), student)

    return run


def main() -> None:
    """Print one line per encoding, region and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--batch", default=1, type=int)
    parser.add_argument("--seed", default=0, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on_gpu = options.device.type == "cuda"
    print(f"{device_name(options.device)}, torch {torch.__version__}, batch {options.batch}, {REPEATS} runs")
    print(f"{'encoding, voxels':24}{'way':8}{'ms':>10}{'MB':>8}{'floor ms':>10}")
    shown = taught_keyframe(torch.device("cpu")).mask_camera[0]
    student = torch.randn(options.batch, *OCC3D.shape, CLASSES, device=options.device).requires_grad_()
    for name, signal, read in encodings(options.seed):
        record = stack([signal.decode(read)] * options.batch).to(options.device)
        for region, mask in (("camera", shown), ("all", torch.ones_like(shown))):
            index_V = mask.expand(options.batch, *mask.shape).flatten().nonzero().squeeze(1).to(options.device)

            def listen(signal: Signal = signal, record: object = record, index_V: Tensor = index_V):
                return signal.listen(record, None, OCC3D, OCC3D_CLASSES.free, frozenset()).kept_voxels(index_V)

            floor = f"{floor_ms(listen(), student.flatten(0, -2)):10.3f}" if on_gpu else ""
            for way, twin in (("chain", "reference"), ("fused", "triton"))[: 1 + on_gpu]:
                run = step(twin, listen, student)
                memory = (peak_bytes(run, options.device) - student.nbytes) / 1e6
                times = milliseconds(run, options.device, 2, REPEATS)
                print(
                    f"{f'{name}, {region}':24}{way:8}{statistics.median(times):10.2f}{memory:8.1f}{floor}", flush=True
                )


if __name__ == "__main__":
    main()
