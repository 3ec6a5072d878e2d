"""What a dump will take is said before it takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from workshop import Workshop

from distill.errors import InputError
from distill.store import TeacherStore
from distill.store.place import Local
from teacher_dump.estimate import Pace, bytes_each, check_space, forecast

TEACHER = """\
import torch.nn.functional as F
from distill.grids import OCC3D
from teacher_dump.teachers import TeacherPrediction


class Labels:
    grid, checkpoint_sha256 = OCC3D, ""
    inputs = {"image_size": [32, 64], "lidar": False, "depth_stride": None}

    def to(self, device):
        return self

    def predict(self, frame):
        return TeacherPrediction((0.94 * F.one_hot(frame.semantics.long(), 18) + 0.06 / 18).log())
"""
DUMP = ("teacher=callable", "teacher.name=labels", "teacher._target_=mine.Labels", "store.path=s.zarr")


def with_free(monkeypatch, count):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=count))


def test_a_dump_that_does_not_fit_is_refused(workshop: Workshop, monkeypatch):
    store = TeacherStore(workshop.folder / "stores/demo-fusion-occ3d.zarr")
    present = sorted(store.present)
    files = [file for file in Path(store.path).rglob("*") if file.is_file() and file.name.startswith("c.")]
    each = bytes_each(store, present)
    assert each == pytest.approx(sum(512 * file.stat().st_blocks for file in files) / len(present), rel=0.02)
    with_free(monkeypatch, int(each * 1000))
    check_space(store, present, 999)
    with pytest.raises(InputError, match=r"1001 more keyframes of .* GB are free: .*dump\.space=ignore"):
        check_space(store, present, 1001)


def test_a_pace_counts_from_the_first_batch_to_the_last_write(workshop: Workshop, monkeypatch):
    store = TeacherStore(workshop.folder / "stores/demo-fusion-occ3d.zarr")
    clock = iter([100.0, 130.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    pace = Pace()
    for _ in range(4):
        pace.done(2)
    pace.written()
    assert pace.seconds == 30 / 6
    monkeypatch.undo()
    with_free(monkeypatch, 5e9)
    told = forecast(store, sorted(store.present), 34149, 34149, pace)
    assert "estimate from 6 keyframes: 5.00 s and" in told
    assert "GB, 5.0 GB are free where" in told
    assert "\n1 d 23 h 26 min, until 2" in told


def test_free_space_is_that_of_the_disk_that_a_store_will_be_on(tmp_path):
    assert Local(tmp_path / "not/yet/there.zarr").free() == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_a_full_disk_stops_a_dump_at_its_first_keyframe_and_an_estimate_dumps_a_handful(copy: Workshop):
    (copy.folder / "mine.py").write_text(TEACHER)
    full = (
        "import shutil, sys, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=5000)\n"
        "sys.argv[0] = 'occ-dump'; from teacher_dump.main import main; main()"
    )
    command = [sys.executable, "-c", full, *copy.command("occ-dump", *DUMP)[1:]]
    ended = subprocess.run(command, cwd=copy.folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "5 more keyframes of" in ended.stderr.splitlines()[-1]
    first = TeacherStore(copy.folder / "s.zarr").present
    assert len(first) == 1
    printed = copy.ok("occ-dump", *DUMP, "dump.estimate=true")
    assert "dumped 5 keyframes" in printed
    assert re.search(r"estimate from 5 keyframes: \d+\.\d\d s and 0\.\d\d MB each", printed)
    assert re.search(r"the other 0: 0\.00 GB, .* GB are free where", printed)
    assert first < TeacherStore(copy.folder / "s.zarr").present
