"""What it costs that a teacher runs in a process of its own: the same answers, from this process and over the bridge.

    python benchmarks/bridge.py [--keyframes 40] [--milliseconds 100] [--dtype float16]

The teacher waits so many milliseconds per keyframe, as for a GPU, and gives logits of all voxels that it has ready.
First the answer is only handed over, as what is made of it takes the same time wherever it comes from; then it is also
taken as declared and checked at the border (`teacher_dump.border.ask`), here on a CPU, as in a dump. Both teachers are
asked in turn, so that whatever else the machine does meets both. What the bridge adds is a median over keyframes, with
a 95 % interval (bootstrap).
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
import time
import numpy as np
import occ_bridge

logits = np.random.RandomState(0).rand(18, 200, 200, 16).astype({dtype!r})


@occ_bridge.serve(kind="logits", axes="CXYZ", grid="occ3d", frame="ego", classes="occ3d")
def answer(keyframe):
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
    """Milliseconds per keyframe of both, and what the second adds."""
    frame, times_K2 = keyframe(), np.empty((1 + count, 2))
    for row in times_K2:
        for column, teacher in enumerate(teachers):
            begun = time.perf_counter()
            asks(teacher, frame)
            row[column] = (time.perf_counter() - begun) * 1000
    added_K = np.diff(times_K2[1:], axis=1)[:, 0]  # the first is warmer
    drawn = np.random.default_rng(0).integers(0, count, (2000, count))
    low, high = np.percentile(np.median(added_K[drawn], 1), [2.5, 97.5])
    (here, over), fastest_2 = np.median(times_K2[1:], 0), times_K2[1:].min(0)
    return (
        f"{what:<22} {here:8.1f} ms here, {over:8.1f} ms over the bridge, added {np.median(added_K):+.1f} ms "
        f"[{low:+.1f}, {high:+.1f}], {np.median(added_K) / here:+.1%}; fastest {fastest_2[1] - fastest_2[0]:+.1f} ms"
    )


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
        path.write_text(PROGRAM.format(dtype=given.dtype, seconds=seconds))
        teachers = Here(given.dtype, seconds), ProcessTeacher(f"{sys.executable} {path}", 600, [32, 64], "cpu")
        print(f"{given.keyframes} keyframes, {given.dtype}, a teacher of {given.milliseconds:g} ms")
        whole = compare("taken and checked", lambda t, f: ask(t, f, OCC3D_CLASSES, CPU), teachers, given.keyframes)
        for teacher in teachers:
            teacher.declared = SimpleNamespace(prediction=lambda arrays, device: arrays)
        print(compare("handed over", lambda teacher, frame: teacher.predict(frame), teachers, given.keyframes))
        print(whole)


if __name__ == "__main__":
    main()
