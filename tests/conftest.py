"""One tiny demo world and one dump of it per test session, made by the programs themselves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SHARED = Path(__file__).parent.parent.parent / "shared"
# a world and a student just large enough to run everything
SMALL_WORLD = (
    "data.world.train_scenes=1",
    "data.world.val_scenes=1",
    "data.world.keyframes_per_scene=4",
    "data.world.image_size=[320,180]",
)
SMALL_STUDENT = (
    "experiment=demo",
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


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A folder with a demo world and the shipped teacher's dump of it."""
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    shop.ok("occ-dump", "gate.min_miou=1")
    return shop


@pytest.fixture(scope="session")
def trained(workshop: Workshop) -> Path:
    """The best checkpoint of a student trained with distillation for two epochs in `workshop`."""
    workshop.ok("occ-train-student", *SMALL_STUDENT, "output=runs/first")
    return workshop.folder / "runs" / "first" / "best.pt"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and goldens beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("no shared/ beside the checkout")
    return SHARED
