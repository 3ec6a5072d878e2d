"""One small demo world, one dump of it and one trained student per test session, made by the programs themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from workshop import SMALL_STUDENT, Workshop

SHARED = Path(__file__).parent.parent.parent / "shared"


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
