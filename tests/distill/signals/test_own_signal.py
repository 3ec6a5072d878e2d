"""A signal that no file of the project knows: stored, read, mirrored, stacked and asked."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from heights import HeardHeights, Heights

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, Mirror, stack
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.networks.prediction import FeatureKind
from distill.signals import SIGNALS, GaussianKind, SignalsOf, TeacherPrediction, described, signal_class
from distill.signals.columns import CoveredVoxels
from distill.signals.voxels import Voxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore

GRID = VoxelGrid("tiny", "ego", (-2.0, -1.5, -1.0), 1.0, (4, 3, 2))
TOKENS = [f"{number:032x}" for number in range(3)]
TEACHER = SimpleNamespace(height_unit=0.01)
LOG_PROBS = torch.randn(2, *GRID.shape, 18, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
HEIGHTS = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(1)) * 5
HEIGHTS[0, 0, 0] = torch.nan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that holds two keyframes."""
    kinds = [signal_class(name) for name in ("heights.Heights", "voxels")]
    signals = described(kind.of(TEACHER, GRID, OCC3D_CLASSES.names) for kind in kinds)
    identity = StoreIdentity("hills", "", {}, GRID, OCC3D_CLASSES.names, signals)
    writer = StoreWriter.open(tmp_path / "store.zarr", identity, TOKENS, ["scene-0001"] * 3)
    prediction = TeacherPrediction(LOG_PROBS, more={"heights": HEIGHTS})
    said = {name: signal.say(prediction, None, 17) for name, signal in writer.signals.items()}
    for index, token in enumerate(TOKENS[:2]):
        of_one = {name: items[index] for name, items in said.items()}
        semantics = LOG_PROBS[index].argmax(-1).byte().numpy()
        writer.write(token, of_one, semantics, np.ones(GRID.shape, bool), np.ones(8, np.uint32))
    return tmp_path / "store.zarr"


def test_it_travels_like_any_other(path: Path) -> None:
    store = TeacherStore(path)
    store.check(GRID, OCC3D_CLASSES, ["heights", "voxels"])
    assert store.identity.signals["heights"] == {"_target_": "heights.Heights", "unit": 0.01}
    assert store.signals["heights"] == Heights(GRID, OCC3D_CLASSES.names, 0.01)
    frames = []
    for token in TOKENS:
        taught = token in store.present
        told = store.told(token, ["heights"], False) if taught else store.silence(["heights"], False)
        frames.append(Frame(token=token, teachers={"hills": told}).mirrored(Mirror(x=True)))
        if taught:
            store.verify(token)
    batch = stack(frames).to(torch.device("cpu"))
    told = batch.teachers["hills"]
    assert told.taught.tolist() == [True, True, False]
    heard = store.signals["heights"].listen(told.signals["heights"], batch, GRID, 17, {"heights"})
    assert isinstance(heard, HeardHeights)
    heights_BXY = heard.heights(torch.arange(36)).view(3, 4, 3)
    torch.testing.assert_close(heights_BXY[:2], HEIGHTS.flip(1), rtol=0, atol=0.0051, equal_nan=True)
    assert heights_BXY[2].isnan().all()


def test_what_it_refuses_is_not_written(path: Path) -> None:
    store = TeacherStore(path)
    writer = StoreWriter.open(path, store.identity, TOKENS, [])
    said = {"voxels": CoveredVoxels(LOG_PROBS[0].numpy(), np.ones(GRID.shape, bool)), "heights": np.full((4, 3), 400.0)}
    rest = np.zeros(GRID.shape, np.uint8), np.ones(GRID.shape, bool), np.ones(8, np.uint32)
    with pytest.raises(InputError, match="was not written: a height of more than 300 m; check the teacher"):
        writer.write(TOKENS[2], said, *rest)
    with pytest.raises(InputError, match=r"heights has the shape \(4,\), not \(4, 3\)"):
        writer.write(TOKENS[2], said | {"heights": np.ones(4)}, *rest)
    assert writer.missing(TOKENS) == TOKENS[2:]


def test_a_teacher_who_does_not_say_it_is_told() -> None:
    signal = Heights(GRID, OCC3D_CLASSES.names, 0.01)
    with pytest.raises(InputError, match=r"prediction has nothing in more\['heights'\] for 2 keyframes"):
        signal.say(TeacherPrediction(LOG_PROBS), None, 17)
    with pytest.raises(InputError, match=r"has 3 items in more\['heights'\] for 2 keyframes"):
        signal.say(TeacherPrediction(LOG_PROBS, more={"heights": [1, 2, 3]}), None, 17)


def test_who_lacks_its_class_reads_all_the_rest(path: Path, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from distill.errors import InputError
from distill.store import TeacherStore
store = TeacherStore(Path(sys.argv[1]))
for token in store.present:
    store.verify(token)
    store.told(token, ["voxels"], coverage=True)
assert len(store.present) == 2 and list(store.signals) == ["heights", "voxels"]
try:
    store.told(token, ["heights"], coverage=False)
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("signal heights.Heights: there is no module heights; give MODULE.CLASS"), done.stderr


def test_a_description_that_does_not_fit_is_no_silent_default(path: Path) -> None:
    store = TeacherStore(path)
    del store.identity.signals["heights"]["unit"]
    with pytest.raises(InputError, match=r"signal heights was described otherwise than heights\.Heights expects"):
        store.told(TOKENS[0], ["heights"], coverage=False)


def test_an_array_belongs_to_one_signal(tmp_path: Path) -> None:
    class Twice(Voxels):
        name = "twice"

    signals = [Voxels(GRID, OCC3D_CLASSES.names), Twice(GRID, OCC3D_CLASSES.names)]
    described_signals = described(signals)
    described_signals["twice"]["_target_"] = "distill.signals.voxels.Voxels"
    identity = StoreIdentity("hills", "", {}, GRID, OCC3D_CLASSES.names, described_signals)
    with pytest.raises(InputError, match="signal twice: a store has an array voxel_logits already"):
        StoreWriter.open(tmp_path / "store.zarr", identity, TOKENS, ["scene-0001"] * 3)
    assert not (tmp_path / "store.zarr").exists()


@pytest.mark.parametrize("name", ["voxels", "bev", "gaussians", "seen", "features"])
def test_a_description_is_the_inverse_of_the_signal(name: str) -> None:
    kind = GaussianKind(7, "additive", 3.0, "upstream", SURROUNDOCC)
    teacher = SimpleNamespace(gaussians=kind, features=FeatureKind(5, 1))
    signal = SIGNALS[name].of(teacher, GRID, OCC3D_CLASSES.names)
    again = SignalsOf(described([signal]), GRID, OCC3D_CLASSES.names, {}.__getitem__)[name]
    assert again == signal
    assert again != dataclasses.replace(signal, grid=dataclasses.replace(GRID, voxel_size=0.5))
