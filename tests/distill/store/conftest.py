from __future__ import annotations

from pathlib import Path

import pytest
from tiny_store import TOKENS, open_writer, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in which the first three keyframes are present."""
    write(open_writer(tmp_path / "teacher.zarr"), *TOKENS[:3])
    return tmp_path / "teacher.zarr"
