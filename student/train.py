"""occ-train-student: train a network on keyframes, labels and teacher stores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from distill import ranks
from distill.checkpoint import is_checkpoint, load_checkpoint, load_training_state, resolve
from distill.command import command
from distill.errors import InputError
from distill.files import owned
from distill.loader import frame_loader
from distill.memory import keep_freed_memory
from distill.metrics import Confusion
from distill.networks.network import OfOthers, StartsPretrained
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.inventory import Inventory
from distill.weights import load_strictly
from student.calibrating import calibrate
from student.identity import check_same_run, run_facts
from student.learner import Learner, make_objective
from student.preemption import leave_signals_to_the_trainer
from student.quantisation import FakeQuantisation
from student.sampler import MixedSampler, ResumableSampler
from student.scoring import score_network
from student.stream import TeacherStream
from student.survey import Plan, survey, training_labels
from student.training import PRECISIONS, Trainer, emulated

LAST, BEST = "last.pt", "best.pt"


@command("train")
def main(config: DictConfig) -> None:
    """Train, or go on with, the configured run; see conf/train.yaml."""
    device = ranks.device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    output = Path(config.output)
    make_folder(output)
    with ranks.process_group(device), owned_by_first_rank(output):
        trainer = prepare(config, output, device)
        try:
            trainer.fit()
        except SystemExit:
            if ranks.rank() == 0:
                told = f"told to end: step {trainer.step} is in {output / LAST}; run the same command again to go on"
                print(told, file=sys.stderr, flush=True)
            raise
        if ranks.rank() == 0:
            print(outcome(trainer), flush=True)


def prepare(config: DictConfig, output: Path, device: torch.device) -> Trainer:
    """The trainer, standing where the run begins or goes on; everything it needs is checked, and said."""
    last = load_training_state(output / LAST) if (output / LAST).exists() else None
    index = open_dataroot(config.data)
    take_convention(config, last)
    network = make_network(config, fresh=last is None)
    objective = make_objective(config, network)
    plan = Plan(config, index, network, objective)
    splits, told = survey(plan, output)
    data = {name: stock.identity(plan.sources) for name, stock in splits.items()}
    facts = run_facts(config, objective, plan.teachers, data)
    if last is not None:
        check_same_run(last, facts, output / LAST, device)
    told = "\n".join([told, *calibrate(plan, splits["train"], device)])
    if ranks.rank() == 0:
        if emulated(config.trainer.precision, device):
            print(f"this {device.type} has no instructions for bf16: trainer.precision=fp32 is many times faster")
        (output / "summary.txt").write_text(f"{told}\n")
    int8 = simulated_int8(config, network)
    learner = Learner(network, objective, plan.teachers, PRECISIONS[config.trainer.precision], int8)
    loader = training_loader(plan, splits["train"])
    scorer = validation(config, splits["val"], device) if splits["val"].labelled else None
    trainer = Trainer(config.trainer, learner, loader, scorer, output, facts, device)
    torch.manual_seed(config.seed + 1 + ranks.rank())  # ranks draw their own dropout
    if last is not None:
        trainer.load_state_dict(last)
        if ranks.rank() == 0:
            print(f"going on from {output / LAST}: step {trainer.step} of {trainer.total_steps}", flush=True)
    return trainer


def take_convention(config: DictConfig, last: dict[str, Any] | None) -> None:
    """Configure a network to the convention that the weights it begins with are used to, and say so.

    No name and no shape tells it (`distill.networks.flashocc.convention`), so that weights would be loaded and mean
    something else.
    """
    init, network = config.trainer.init, config.student.network
    if init is None or "convention" not in network:
        return
    if last is not None:
        theirs = last["config"]["student"]["network"]["convention"]
    elif is_checkpoint(init):
        theirs = load_checkpoint(init, "ema").config["student"]["network"].get("convention", network.convention)
    else:
        theirs = "upstream"
    if theirs != network.convention:
        network.convention = theirs
        if ranks.rank() == 0:
            print(f"{init}: its weights are used to student.network.convention={theirs}, which is set", flush=True)


def make_network(config: DictConfig, fresh: bool) -> nn.Module:
    """The network, with its initial weights unless those of a checkpoint will replace them."""
    # every rank starts from the same weights; DDP broadcasts the first rank's anyway
    torch.manual_seed(config.seed)
    network = instantiate(config.student.network)
    if not fresh:
        return network
    for module in network.modules():
        if isinstance(module, StartsPretrained):
            module.load_pretrained()
    if config.trainer.init is not None:
        load_initial(network, config.trainer.init)
    return network


def load_initial(network: nn.Module, path: str) -> None:
    """Weights to begin with: those of a checkpoint, or of a file that the authors of the network published.

    Raises:
        InputError: they are missing or do not fit.
    """
    if isinstance(network, OfOthers) and not is_checkpoint(path):
        network.published().load(network, resolve(path))
        return
    initial = load_checkpoint(path, "ema")
    load_strictly(network, initial.state, str(initial.path))


def simulated_int8(config: DictConfig, network: nn.Module) -> FakeQuantisation | None:
    """What makes a network compute as if it were in 8 bits, where `trainer.int8` asks for it.

    Raises:
        InputError: no ONNX file can be made of it.
    """
    if config.trainer.int8 is None:
        return None
    from student.export.graph import parts_of  # knows all networks, and timm with them, which takes seconds

    height, width = config.student.inputs.image_size
    parts_of(network, (height, width))
    int8 = FakeQuantisation(network, config.trainer.int8.keep)
    if ranks.rank() == 0:
        print(f"trained for 8 bits: {len(int8.layers)} layers, the others stay in float32", flush=True)
    return int8


def outcome(trainer: Trainer) -> str:
    """What the run came to, in one line."""
    scored = [entry for entry in trainer.history if "val_miou" in entry]
    if not scored:
        return (
            f"{trainer.output}: {len(trainer.history)} epochs, none scored; the weights are in {trainer.output / LAST}"
        )
    best = max(scored, key=lambda entry: entry["val_miou"])
    return (
        f"{trainer.output}: best val mIoU {best['val_miou']:.2f} in epoch {best['epoch']} of {len(trainer.history)} "
        f"(EMA weights); score it with: occ-eval checkpoint={trainer.output / BEST}"
    )


@contextmanager
def owned_by_first_rank(output: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder."""
    if ranks.rank() > 0:
        yield
        return
    with owned(output / ".lock", f"run {output}"):
        for partial in output.glob("*.partial"):  # of a process that was killed while it saved
            partial.unlink()
        yield


def make_folder(output: Path) -> None:
    """Make the run's folder.

    Raises:
        InputError: it cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / ".writable").touch()
        (output / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot write here ({error.strerror}): choose another output=") from error


def training_loader(plan: Plan, stock: Inventory) -> DataLoader:
    """Batches of the training keyframes joined with what the teachers say.

    Raises:
        InputError: batch size, ranks and keyframes do not fit, or there is no label to take a prior from.
    """
    config, keyframes = plan.config, stock.keyframes
    ranks.check_enough(len(keyframes), "training keyframes")
    if config.trainer.batch_size % ranks.world_size():
        raise InputError(
            f"trainer.batch_size={config.trainer.batch_size} (over all ranks) is no multiple of "
            f"{ranks.world_size()} ranks: choose one"
        )
    if len(keyframes) < config.trainer.batch_size:
        raise InputError(
            f"{len(keyframes)} training keyframes do not fill one batch: "
            f"set trainer.batch_size to {len(keyframes)} or less"
        )
    frames = FrameDataset(
        keyframes,
        labels=training_labels(plan, stock),
        augmentation=instantiate(config.trainer.augmentation),
        seed=config.seed,
        depth_stride=plan.depth_stride,
        rays=plan.rays,
        **{**config.student.inputs, "lidar": plan.points},
    )
    return frame_loader(
        TeacherStream(frames, plan.teachers),
        config.trainer.workers,
        batch_sampler=make_sampler(config, [token in stock.labelled for token in keyframes.tokens]),
        worker_init_fn=leave_signals_to_the_trainer,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the global random state belongs to the network: a resumed run restores it
    )


def make_sampler(config: DictConfig, labelled: Sequence[bool]) -> ResumableSampler:
    """In which order this rank trains on keyframes of which so many have labels.

    Raises:
        InputError: `trainer.labelled_share` cannot be had.
    """
    share = config.trainer.labelled_share
    drawn = (config.trainer.batch_size, config.seed, ranks.rank(), ranks.world_size())
    return ResumableSampler(len(labelled), *drawn) if share is None else MixedSampler(labelled, share, *drawn)


def validation(config: DictConfig, stock: Inventory, device: torch.device) -> Callable[[nn.Module], Confusion]:
    """A function that scores a network on the validation split, without teacher and augmentation.

    Raises:
        InputError: there are more ranks than keyframes, or no mask holds a voxel.
    """
    ranks.check_enough(len(stock.keyframes), "validation keyframes")
    if not stock.masks[:, 0].any():
        raise InputError(
            f"mask_camera is empty in all {len(stock.masks)} label files of split {config.data.val_split} looked at: "
            "a score on them is undefined; get the labels again"
        )
    mine = stock.keyframes[ranks.rank() :: ranks.world_size()]
    labels = open_labels(config.data, instantiate(config.grid))
    frames = FrameDataset(
        mine, labels=labels, augmentation=None, seed=config.seed, depth_stride=None, **config.student.inputs
    )
    classes = instantiate(config.classes)

    def score(network: nn.Module) -> Confusion:
        loader = frame_loader(
            frames,
            min(1, config.trainer.workers),
            batch_size=1,
            worker_init_fn=leave_signals_to_the_trainer,
            generator=torch.Generator(),
        )
        return score_network(network, loader, classes, device)

    return score
