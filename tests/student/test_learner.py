"""Network and objective as one module: distributed, optimised, saved and resumed together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from made import FREE, GRID, C, X, Y, Z, listening, taught_frame
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from workshop import SMALL_STUDENT

from distill.classes import OCC3D_CLASSES
from distill.frame import Frame, Told
from distill.grids import OCC3D
from distill.losses.logits import VoxelKL
from distill.losses.objective import Objective, Term
from distill.losses.supervised import CrossEntropy
from distill.networks.prediction import Occupancy
from distill.teaching import Pupil
from distill.teaching.ema import Ema
from student.learner import Learner, make_objective


class Scaled(Term):
    """The mean probability of free space, times a weight that is learned."""

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, lesson):
        return self.scale * lesson.prediction.voxel_logits_BXYZC.softmax(-1)[..., FREE].mean()


class Constant(nn.Module):
    """The same logits for every frame, times what is in its images."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, X * Y * Z * C).view(X, Y, Z, C))

    def forward(self, frame):
        return Occupancy(frame.images.view(-1, 1, 1, 1, 1) * self.logits)


def make_learner() -> Learner:
    terms = {"ce": CrossEntropy(1.0, "log", "all", OCC3D_CLASSES), "scaled": Scaled(0.5)}
    return Learner(Constant(), Objective(terms), [], None)


def frame_of(rank: int):
    return replace(taught_frame(), images=torch.tensor([1.0, 2.0]) + rank, teachers=None)


def gradients(module: nn.Module, learner: Learner, rank: int) -> dict[str, torch.Tensor]:
    terms = module(frame_of(rank), 0)
    torch.stack([weighted for _, weighted in terms.values()]).sum().backward()
    return {name: parameter.grad for name, parameter in learner.named_parameters()}


def street() -> Frame:
    """A keyframe of one camera that looks along x at a wall on a road, all of it seen."""
    semantics = torch.full((1, *OCC3D.shape), FREE, dtype=torch.uint8)
    semantics[:, :, :, 1], semantics[:, 140, :, 2:] = 11, 15
    cam2ego = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    intrinsics = torch.tensor([[80.0, 0, 80], [0, 80, 32], [0, 0, 1]])
    everywhere = torch.ones_like(semantics, dtype=torch.bool)
    return Frame(
        token=["a" * 32],
        images=torch.randint(0, 256, (1, 1, 3, 64, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        intrinsics=intrinsics[None, None],
        cam2ego=cam2ego[None, None],
        semantics=semantics,
        mask_camera=everywhere,
        mask_lidar=everywhere,
        labelled=torch.tensor([True]),
    )


@pytest.mark.parametrize("name", ["multi_scale", "image_semantics"])
def test_terms_that_look_into_features_train_what_is_configured(name):
    overrides = ["student=demo", "student.network.encoder.weights=none", f"objective.terms.{name}.weight=1"]
    overrides += ["kd=none", *(f"objective.terms.{other}.weight=0" for other in ("ce", "lovasz", "depth"))]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", [*overrides, "student.network.encoder.frozen_levels=0"])
    network = instantiate(config.student.network)
    learner = Learner(network, make_objective(config, network), [], None)
    ((value, weighted),) = learner(street(), 0).values()
    weighted.backward()
    assert 0 < value.item() < 20
    trained = [*learner.objective.parameters(), *network.encoder.parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert sum(parameter.grad.any() for parameter in trained) > 0.8 * len(trained)


def on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    learner = make_learner()
    torch.save(gradients(DistributedDataParallel(learner), learner, rank), f"{folder}/{rank}.pt")
    dist.barrier()  # gloo aborts a rank whose peer is gone before it
    dist.destroy_process_group()


def test_ranks_share_the_gradients_of_terms_too(tmp_path):
    torch.multiprocessing.spawn(on_rank, (str(tmp_path),), nprocs=2)
    alone = []
    for rank in range(2):
        learner = make_learner()
        alone.append(gradients(learner, learner, rank))
    shared = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert shared[0].keys() == {"network.logits", "objective.terms.scaled.scale"}
    for name, expected in alone[0].items():
        torch.testing.assert_close(shared[0][name], (expected + alone[1][name]) / 2)
        assert torch.equal(shared[0][name], shared[1][name])
        assert not torch.equal(expected, alone[1][name])


class Normed(Constant):
    """Divided by a running mean of what is in the images, which every rank has of its own frames."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, frame):
        return Occupancy(self.norm(frame.images.unsqueeze(1)).view(-1, 1, 1, 1, 1) * self.logits)


def learner_with_ema() -> Learner:
    network = Normed()
    schedule = {"momentum": 0.9, "warmup": 0, "milestones": (), "decay": 1.0, "interval": 1, "ramp": 0}
    pupil = Pupil(network, GRID, OCC3D_CLASSES, ("voxels",), (), (False, False), (), ())
    ema = Ema("ema", 1.0, frames="all", measured_depth=False, **schedule, pupil=pupil)
    terms = {"kd": VoxelKL(temperature=1.0, confidence="none", **listening(mask="all"))}
    terms["ce"] = CrossEntropy(1.0, "log", "all", OCC3D_CLASSES)
    return Learner(network, Objective(terms), [ema], None)


def train_with_ema(module: nn.Module, learner: Learner, rank: int, steps: int) -> None:
    optimizer = torch.optim.SGD(learner.trained(), lr=0.5)
    for step in range(steps):
        told = {"ema": Told(taught=torch.tensor([True, True]), signals={})}
        frame = replace(frame_of(rank), images=torch.tensor([1.0, 2.0 + step]) + 3 * rank, teachers=told)
        optimizer.zero_grad()
        torch.stack([weighted for _, weighted in module(frame, step).values()]).sum().backward()
        optimizer.step()


def ema_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    learner = learner_with_ema()
    train_with_ema(DistributedDataParallel(learner), learner, rank, steps=4)
    torch.save(learner.teachers.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_have_the_same_average_as_teacher(tmp_path):
    """Batch-norm statistics, too, of which a rank has its own after each step."""
    torch.multiprocessing.spawn(ema_on_rank, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert "ema.network.norm.running_mean" in one
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_an_average_is_saved_and_not_optimised():
    learner = learner_with_ema()
    assert {id(parameter) for parameter in learner.trained()} == {id(p) for p in learner.network.parameters()}
    train_with_ema(learner, learner, rank=0, steps=3)
    other = learner_with_ema()
    other.teachers.load_state_dict(learner.teachers.state_dict())
    average, student = learner.teachers["ema"].network.logits, learner.network.logits
    assert torch.equal(other.teachers["ema"].network.logits, average)
    assert not torch.equal(average, student)


PROBE = '''
from torch import nn
from distill.losses.objective import Term

class Probe(Term):
    """A convolution with dropout, so that random numbers count, over the BEV features."""

    def __init__(self, weight):
        super().__init__(weight)
        self.probe = nn.Sequential(nn.Conv2d(64, 1, 1), nn.Dropout(0.5))

    def forward(self, lesson):
        return self.probe(lesson.prediction.features["bev"].values.float()).square().mean()
'''
TERM = "+objective.terms.probe={_target_: probe.Probe, weight: 0.1}"


@pytest.fixture
def probe(workshop):
    (workshop.folder / "probe.py").write_text(PROBE)


def test_weights_of_terms_resume_bit_for_bit_and_looking_at_gradients_changes_nothing(workshop, probe):
    """kill -9 and again, with gradients compared at every step, while teachers warm up; against one go without."""
    run = (*SMALL_STUDENT, TERM, "kd.warmup_steps=3", "trainer.max_samples=2", "trainer.checkpoint_every=1")
    killed, straight = (workshop.folder / "runs" / name / "last.pt" for name in ("probed", "straight"))
    compared = (*run, "output=runs/probed", "trainer.gradient_norms_every=1")
    process = subprocess.Popen(workshop.command("occ-train-student", *compared), cwd=workshop.folder)
    while not killed.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(killed, weights_only=True)["step"] < 4
    assert "going on from" in workshop.ok("occ-train-student", *compared)
    workshop.ok("occ-train-student", *run, "output=runs/straight", "trainer.gradient_norms_every=null")
    resumed, expected = (torch.load(path, weights_only=True) for path in (killed, straight))
    assert resumed["history"] == expected["history"]
    first = resumed["history"][0]  # of its two steps the weights are 0 and 1/3
    assert 0 < first["train_kd_voxel"] < first["train_kd_voxel_raw"] / 3
    for part in ("network", "ema", "objective"):
        assert resumed[part].keys() == expected[part].keys()
        assert all(torch.equal(value, expected[part][name]) for name, value in resumed[part].items())
    assert resumed["objective"].keys() == {"terms.probe.probe.0.weight", "terms.probe.probe.0.bias"}
    assert not any("probe" in name for name in resumed["ema"])


def test_two_processes_train_weights_of_terms(workshop, probe):
    overrides = ("output=runs/two_probed", "trainer.epochs=1", "trainer.batch_size=2", "trainer.max_val_samples=2")
    ended = workshop.launch(2, "occ-train-student", *SMALL_STUDENT, TERM, *overrides, "trainer.gradient_norms_every=1")
    assert ended.returncode == 0, ended.stderr
    state = torch.load(workshop.folder / "runs/two_probed/last.pt", weights_only=True)
    assert state["world_size"] == 2
    assert state["history"][0]["train_probe_raw"] == pytest.approx(10 * state["history"][0]["train_probe"])


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="not an x86 processor")
@pytest.mark.parametrize(("precision", "said"), [("bf16", True), ("fp32", False)])
def test_a_precision_without_instructions_is_said(precision, said):
    """On a processor that bf16 takes twenty times as long; looked at where PyTorch believes in such a one."""
    looked = f"import torch, student.training as s; print(s.emulated({precision!r}, torch.device('cpu')))"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    printed = subprocess.run(
        [sys.executable, "-c", looked], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed == f"{said}\n"
