from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_store import TOKENS, open_writer, write

from distill.store.main import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in which the first three keyframes are present."""
    write(open_writer(tmp_path / "teacher.zarr"), *TOKENS[:3])
    return tmp_path / "teacher.zarr"


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program with overrides; its exit code, what it printed and what it complained of."""

    def run(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["occ-store", "hydra/job_logging=none", *overrides])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(run):
    """Run the program, which must refuse; the line."""

    def refused(*overrides: str) -> str:
        code, _, err = run(*overrides)
        lines = [line for line in err.splitlines() if "error:" in line]
        assert (code, len(lines)) == (2, 1), err
        return lines[0]

    return refused
