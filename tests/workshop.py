"""The three programs as a user runs them, on a small demo world and with a small student."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from distill.store.schema import seal_of

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
# a world and a student just large enough to run everything
SMALL_WORLD = (
    "data.world.train_scenes=1",
    "data.world.val_scenes=2",
    "data.world.keyframes_per_scene=2",
    "data.world.image_size=[320,180]",
    "data.cache_dir=cache",
)
STORE = "stores/demo-fusion-occ3d.zarr"  # the shipped teacher's dump of it
SMALL_STUDENT = (
    "experiment=demo",
    f"teachers.stored.paths=[{STORE}]",  # tests leave others beside it
    "student.inputs.image_size=[64,160]",
    "trainer.epochs=2",
    "trainer.batch_size=1",
    "trainer.workers=0",
    "trainer.warmup_steps=1",
    "trainer.max_val_samples=1",
)
PROGRAMS = {entry.name: entry for entry in entry_points(group="console_scripts") if entry.name.startswith("occ-")}
# a program's process is a fork of one that has done the imports, which take seconds
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([*(entry.module for entry in PROGRAMS.values()), "timm", "distill.nuscenes.tables"])


def rewrite(store: Path, attributes: dict[str, Any]) -> None:
    """Give a store other attributes, sealed as it does itself."""
    described = json.loads((store / "zarr.json").read_text())
    described["attributes"] = attributes | {"seal": seal_of(attributes)}
    (store / "zarr.json").write_text(json.dumps(described))


@dataclass
class Workshop:
    """A folder in which a user runs the three programs, on a small demo world."""

    folder: Path

    def run(self, program: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """Run a program in this folder and wait for its end."""
        _, *arguments = self.command(program, *overrides)
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder, name) for name in ("out", "err")]
            process = FORKS.Process(target=_become, args=(program, arguments, self.folder, streams, dict(os.environ)))
            with contextlib.chdir(ROOT):  # where the forking process finds the packages, and not tests/distill
                process.start()
            process.join(600)
            if process.exitcode is None:
                process.kill()
                raise TimeoutError(f"{program} {arguments} runs for more than 10 minutes")
            return subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in streams))

    def launch(self, ranks: int, program: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """Run several processes of a program with torchrun and wait for their end."""
        torchrun = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks), "--no-python"]
        command = [*torchrun, *self.command(program, *overrides)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False)

    def command(self, program: str, *overrides: str) -> list[str]:
        """The command line of a program, for a process from scratch."""
        own_data = program in ("occ-eval", "occ-export", "occ-store") or any(o.startswith("data=") for o in overrides)
        world = () if own_data else SMALL_WORLD
        return [str(BIN / program), *world, *overrides]

    def ok(self, program: str, *overrides: str) -> str:
        """Run a program that must succeed; returns what it printed."""
        ended = self.run(program, *overrides)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def refused(self, program: str, *overrides: str) -> str:
        """Run a program that must refuse with one line and exit code 2; returns that line."""
        ended = self.run(program, *overrides)
        assert ended.returncode == 2, (ended.returncode, ended.stderr)
        lines = [line for line in ended.stderr.splitlines() if "error:" in line or "Traceback" in line]
        assert len(lines) == 1, ended.stderr
        assert lines[0].startswith(f"{program}: error: ")
        return lines[0]


def _become(program: str, arguments: list[str], folder: Path, streams: list[Path], environ: dict[str, str]) -> None:
    """What the console script does, with standard output and error in files."""
    os.environ |= environ
    multiprocessing.set_start_method(None, force=True)  # for its loader workers: the default, as in any process
    for descriptor, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    sys.argv = [program, *arguments]
    sys.exit(PROGRAMS[program].load()())
