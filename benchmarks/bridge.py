"""What it costs that a teacher runs in a process of its own: the same answers, from this process and over the bridge.

    python benchmarks/bridge.py [--keyframes 40] [--milliseconds 100] [--dtype float16]

The teacher waits so many milliseconds per keyframe, as for a GPU, and gives logits of all voxels that it has ready.
First the answer is only handed over, as what is made of it takes the same time wherever it comes from; then it is also
taken as declared and checked at the border (`teacher_dump.border.ask`), here on a CPU, as in a dump. Both teachers are
asked in turn, so that whatever else the machine does meets both. What the bridge adds is a median over keyframes, with
a 95 % interval (bootstrap): of the time that passes, and of CPU time, which a busy machine does not prolong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from distill.classes import OCC3D_CLASSES
from teacher_dump.asked import AskedFrame
from teacher_dump.border import ask
from teacher_dump.declared import Declared
from teacher_dump.teachers.process.teacher import ProcessTeacher

CPU = torch.device("cpu")
PROGRAM = """\
import atexit
import time
import numpy as np
import occ_bridge

cpu = []  # seconds, at each keyframe
atexit.register(lambda: np.save({cpu!r}, cpu))
logits = np.random.RandomState(0).rand(18, 200, 200, 16).astype({dtype!r})


@occ_bridge.serve(kind="logits", axes="CXYZ", grid="occ3d", frame="ego", classes="occ3d")
def answer(keyframe):
    cpu.append(time.process_time())
    time.sleep({seconds})
    return logits
"""


class Here:
    """The same teacher in this process."""

    def __init__(self, dtype: str, seconds: float) -> None:
        self.logits_CXYZ = np.random.RandomState(0).rand(18, 200, 200, 16).astype(dtype)
        facts = {"kind": "logits", "axes": "CXYZ", "grid": "occ3d", "classes": "occ3d"}
        self.declared, self.seconds = Declared.of(facts, "here"), seconds
        self.grid = self.declared.voxel_grid

    def predict(self, frame):
        """Wait, and answer."""
        time.sleep(self.seconds)
        return self.declared.prediction({"voxels": self.logits_CXYZ}, CPU)


def keyframe() -> AskedFrame:
    """What is told of one: six cameras, and a past of seven."""
    eye = np.eye(4).tolist()
    camera = {"path": "p" * 100, "width": 1600, "height": 900, "intrinsics": eye, "cam2ego": eye, "ego2global": eye}
    cameras = {f"CAM_{number}": camera for number in range(6)}
    one = {"token": "t", "ego2global": eye, "lidar": {"lidar2ego": eye}, "cameras": cameras}
    return AskedFrame(token=["t"], given=[json.dumps({**one, "past": [one] * 7})])


def compare(what: str, asks: Callable[[Any, AskedFrame], Any], teachers: tuple[Any, Any], count: int) -> str:
    """Milliseconds per keyframe of both, and what the second adds here; CPU time of the program is not in it."""
    frame, times_K22 = keyframe(), np.empty((1 + count, 2, 2))
    for row in times_K22:
        for column, teacher in enumerate(teachers):
            begun = time.perf_counter(), time.process_time()
            asks(teacher, frame)
            row[column] = time.perf_counter() - begun[0], time.process_time() - begun[1]
    times_K22 = times_K22[1:] * 1000  # the first is warmer
    here, over = np.median(times_K22[..., 0], 0)
    (added, low, high), of_cpu = (added_by(times_K22[..., clock]) for clock in (0, 1))
    return (
        f"{what:<22} {here:8.1f} ms here, {over:8.1f} ms over the bridge, added {added:+.1f} ms [{low:+.1f}, "
        f"{high:+.1f}], {added / here:+.1%}; CPU time here {of_cpu[0]:+.1f} ms [{of_cpu[1]:+.1f}, {of_cpu[2]:+.1f}]"
    )


def added_by(times_K2: np.ndarray) -> tuple[float, float, float]:
    """What the second adds: median and 95 % interval."""
    added_K = np.diff(times_K2, axis=1)[:, 0]
    drawn = np.random.default_rng(0).integers(0, len(added_K), (2000, len(added_K)))
    low, high = np.percentile(np.median(added_K[drawn], 1), [2.5, 97.5])
    return float(np.median(added_K)), low, high


def copying(values: np.ndarray, count: int) -> float:
    """CPU milliseconds of a bare copy, asked as seldom as a teacher is."""
    copied, times_K = np.empty_like(values), np.empty(1 + count)
    for k in range(len(times_K)):
        time.sleep(0.1)
        begun = time.process_time()
        np.copyto(copied, values)
        times_K[k] = (time.process_time() - begun) * 1000
    return float(np.median(times_K[1:]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keyframes", type=int, default=40)
    parser.add_argument("--milliseconds", type=float, default=100.0)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    given = parser.parse_args()
    seconds = given.milliseconds / 1000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        cpu = Path(folder, "cpu.npy")
        path.write_text(PROGRAM.format(dtype=given.dtype, seconds=seconds, cpu=str(cpu)))
        teachers = Here(given.dtype, seconds), ProcessTeacher(f"{sys.executable} {path}", 600, [32, 64], "cpu")
        print(f"{given.keyframes} keyframes, {given.dtype}, a teacher of {given.milliseconds:g} ms")
        whole = compare("taken and checked", lambda t, f: ask(t, f, OCC3D_CLASSES, CPU), teachers, given.keyframes)
        for teacher in teachers:
            teacher.declared = SimpleNamespace(prediction=lambda arrays, device: arrays)
        print(compare("handed over", lambda teacher, frame: teacher.predict(frame), teachers, given.keyframes))
        print(whole)
        teachers[1].close()
        program = np.median(np.diff(np.load(cpu))) * 1000
        bare = copying(teachers[0].logits_CXYZ, given.keyframes)
        print(f"CPU time of the program {program:.1f} ms, of which a bare copy takes {bare:.1f} ms")


if __name__ == "__main__":
    main()
