"""The three programs as a user runs them, on a small demo world and with a small student."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
# a world and a student just large enough to run everything
SMALL_WORLD = (
    "data.world.train_scenes=1",
    "data.world.val_scenes=1",
    "data.world.keyframes_per_scene=4",
    "data.world.image_size=[320,180]",
)
SMALL_STUDENT = (
    "experiment=demo",
    "trainer.init=null",
    "student.inputs.image_size=[64,160]",
    "trainer.epochs=2",
    "trainer.batch_size=2",
    "trainer.workers=0",
    "trainer.warmup_steps=1",
    "trainer.max_val_samples=2",
)


@dataclass
class Workshop:
    """A folder in which a user runs the three programs, on a small demo world."""

    folder: Path

    def run(self, program: str, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        """Run a program in this folder and wait for its end."""
        return subprocess.run(
            self.command(program, *overrides, ranks=ranks),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def command(self, program: str, *overrides: str, ranks: int = 1) -> list[str]:
        """The command line of `run`."""
        launch = [str(BIN / "torchrun"), "--nproc-per-node", str(ranks), "--no-python"] if ranks > 1 else []
        world = () if program == "occ-eval" or any(o.startswith("data=") for o in overrides) else SMALL_WORLD
        return [*launch, str(BIN / program), *world, *overrides]

    def ok(self, program: str, *overrides: str, ranks: int = 1) -> str:
        """Run a program that must succeed; returns what it printed."""
        ended = self.run(program, *overrides, ranks=ranks)
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
