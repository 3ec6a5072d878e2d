"""The learner of `kd=features` on the student's side: trained, checkpointed, resumed bit for bit, in no export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made import listening
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, Dataset

from distill.checkpoint import export, load_checkpoint, load_training_state
from distill.classes import OCC3D_CLASSES
from distill.frame import Frame, Mirror, stack
from distill.grids import VoxelGrid
from distill.losses.features import FeatureDistillation
from distill.losses.objective import Objective
from distill.networks.prediction import FeatureMap, Occupancy
from distill.signals import described
from distill.signals.features import Features
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.teaching.stored import Stored
from student.learner import Learner
from student.sampler import ResumableSampler
from student.training import Trainer

GRID = VoxelGrid("tiny", "ego", (-4.0, -4.0, -1.0), 1.0, (8, 8, 2))
TOKENS = [f"{number:032x}" for number in range(4)]
CONFIG = OmegaConf.create(
    {
        "epochs": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "warmup_steps": 0,
        "clip_norm": 5.0,
        "precision": "fp32",
        "ema_decay": 0.9,
        "checkpoint_every": 1,
        "gradient_norms_every": None,
    }
)
FACTS = {"config": {}, "code": "", "teachers": {}, "data": {}, "files": {}}


class Painted(nn.Module):
    """BEV features of an image that is a map itself; with dropout, so that random numbers count."""

    def __init__(self):
        super().__init__()
        self.bev = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Dropout(0.5))
        self.head = nn.Linear(6, GRID.shape[2] * 18)

    def forward(self, frame):
        bev = self.bev(frame.images[:, 0].float() / 255)
        logits = self.head(bev.permute(0, 2, 3, 1)).unflatten(-1, (GRID.shape[2], 18))
        return Occupancy(logits, {"bev": FeatureMap(bev, "grid", 1)})


class Frames(Dataset):
    """Random frames, with what a teacher says of them; the second turn is of the mirrored world."""

    def __init__(self, teacher):
        self.teacher = teacher

    def __getitem__(self, draw):
        random = np.random.default_rng(draw.frame)
        frame = Frame(
            token=TOKENS[draw.frame],
            images=random.integers(0, 256, (1, 3, 8, 8), np.uint8),
            semantics=random.integers(0, 18, GRID.shape, np.uint8),
            mask_camera=random.random(GRID.shape) < 0.5,
            labelled=np.bool_(True),
            teachers={"stored": self.teacher.told(TOKENS[draw.frame])},
        )
        return frame.mirrored(Mirror(x=bool(draw.turn)))


class Killed(Trainer):
    """Dies when it has saved for the first time."""

    def save(self, name):
        super().save(name)
        raise KeyboardInterrupt


@pytest.fixture
def teacher(tmp_path):
    """A store of the features of all frames but one."""
    signal = Features(GRID, OCC3D_CLASSES.names, 5, 2)
    identity = StoreIdentity("teacher", "", {}, GRID, OCC3D_CLASSES.names, described([signal]))
    writer = StoreWriter.open(tmp_path / "store.zarr", identity, TOKENS, ["scene"] * len(TOKENS))
    for token in TOKENS[:-1]:
        said = {"features": np.random.default_rng(int(token, 16)).normal(size=(5, 4, 4))}
        rest = np.zeros(GRID.shape, np.uint8), np.ones(GRID.shape, bool), np.zeros(8, np.uint32)
        writer.write(token, said, *rest)
    stores = [TeacherStore(tmp_path / "store.zarr")]
    return Stored("stored", stores, "skip", None, 1.0, GRID, OCC3D_CLASSES, {"features"})


def make_trainer(kind, teacher, output: Path):
    torch.manual_seed(0)
    term = FeatureDistillation("mfd", False, 0.5, student_channels=6, teacher_channels=5, **listening())
    learner = Learner(Painted(), Objective({"kd_features": term}), [teacher], None)
    sampler = ResumableSampler(len(TOKENS), batch_size=2, seed=0, rank=0, world_size=1)
    loader = DataLoader(Frames(teacher), batch_sampler=sampler, collate_fn=stack, generator=torch.Generator())
    output.mkdir(exist_ok=True)
    torch.manual_seed(1)
    return kind(CONFIG, learner, loader, None, output, FACTS, torch.device("cpu"))


def test_it_is_trained_and_goes_on_bit_for_bit(teacher, tmp_path):
    straight = make_trainer(Trainer, teacher, tmp_path / "straight")
    begun = {name: value.clone() for name, value in straight.objective.state_dict().items()}
    straight.fit()
    killed = make_trainer(Killed, teacher, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    resumed = make_trainer(Trainer, teacher, tmp_path / "killed")
    torch.manual_seed(7)  # another process
    resumed.load_state_dict(load_training_state(tmp_path / "killed/last.pt"))
    assert resumed.step == 1
    resumed.fit()
    states = [load_training_state(tmp_path / run / "last.pt") for run in ("straight", "killed")]
    assert states[0]["objective"].keys() == {f"terms.kd_features.adapter.{part}" for part in ("weight", "bias")}
    for part in ("objective", "network", "ema"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    assert states[0]["history"] == states[1]["history"]
    assert all(not torch.equal(value, begun[name]) for name, value in states[0]["objective"].items())
    losses = [entry["train_kd_features"] for entry in states[0]["history"]]
    assert losses[1] < losses[0]


def test_it_is_in_no_export(teacher, tmp_path):
    trainer = make_trainer(Trainer, teacher, tmp_path / "run")
    trainer.save("last.pt")
    checkpoint = load_checkpoint(str(tmp_path / "run/last.pt"), "ema")
    export(checkpoint, tmp_path / "out.safetensors")
    exported = load_checkpoint(str(tmp_path / "out.safetensors"), "ema")
    assert exported.state.keys() == Painted().state_dict().keys()
