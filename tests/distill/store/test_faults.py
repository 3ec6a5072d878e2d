"""Small campaigns of benchmarks/store_faults.py."""

from __future__ import annotations

import random
import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks/store_faults.py"


@pytest.mark.parametrize(("campaign", "count"), [("kills", 8), ("flips", 40), ("reads", 200), ("full", 67)])
def test_no_fault_is_silent(campaign: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(1)
    runpy.run_path(str(SCRIPT))[campaign](count, tmp_path)
    told = capsys.readouterr().out
    assert re.match(r"\d+ file operations found" if campaign == "full" else rf"\d+ {campaign}", told)


def test_no_fault_of_an_object_store_is_silent(
    folder_of_objects: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "30s")  # is set anew
    random.seed(1)
    runpy.run_path(str(SCRIPT))["requests"](2, tmp_path)
    assert "none false, none lost" in capsys.readouterr().out
