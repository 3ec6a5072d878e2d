"""occ-train-student: train a network on keyframes, labels and teacher stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from distill import ranks
from distill.checkpoint import code_version, load_checkpoint, load_strictly, load_training_state
from distill.command import command
from distill.errors import InputError
from distill.memory import keep_freed_memory
from distill.metrics import Confusion
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset, collate
from distill.nuscenes.index import Keyframes, NuScenesIndex
from distill.store import TeacherStore
from student.sampler import ResumableSampler
from student.scoring import score_network
from student.stream import TeacherStream, open_stores
from student.training import Trainer

# what may differ between a run and its continuation, because no number depends on it
FREE_TO_CHANGE = ("trainer.workers", "trainer.checkpoint_every")


@command("train")
def main(config: DictConfig) -> None:
    """Train, or go on with, the configured run; see conf/train.yaml."""
    device = ranks.device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    with ranks.process_group(device):
        index = open_dataroot(config.data)
        output = Path(config.output)
        make_folder(output)
        # every rank starts from the same weights; DDP broadcasts the first rank's anyway
        torch.manual_seed(config.seed)
        network = instantiate(config.student.network)
        if config.trainer.init is not None:
            initial = load_checkpoint(config.trainer.init, "ema")
            load_strictly(network, initial.state, str(initial.path))
        keyframes = index.keyframes("train")[: config.trainer.max_samples]
        stores = open_stores(config, keyframes.tokens)
        loader = training_loader(config, keyframes, stores)
        scorer = validation(config, index, device)
        losses = [instantiate(node) for node in (config.trainer.loss, config.kd.loss) if node is not None]
        facts = {
            "config": OmegaConf.to_container(config, resolve=True),
            "code": code_version(),
            "stores": [store.identity.to_dict() for store in stores],
        }
        trainer = Trainer(config.trainer, network, losses, loader, scorer, output, facts, device)
        torch.manual_seed(config.seed + 1 + ranks.rank())  # ranks draw their own dropout
        last = output / "last.pt"
        if last.exists():
            resume(trainer, last)
        trainer.fit()
        if ranks.rank() == 0:
            best = max(trainer.history, key=lambda entry: entry["val_miou"])
            print(
                f"{output}: best val mIoU {best['val_miou']:.2f} in epoch {best['epoch']} of {config.trainer.epochs} "
                f"(EMA weights); score it with: occ-eval checkpoint={output / 'best.pt'}"
            )


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


def training_loader(config: DictConfig, keyframes: Keyframes, stores: list[TeacherStore]) -> DataLoader:
    """Batches of `keyframes` joined with the teacher stores.

    Raises:
        InputError: batch size, ranks and keyframes do not fit.
    """
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
        labels=open_labels(config.data, instantiate(config.grid)),
        augmentation=instantiate(config.trainer.augmentation),
        seed=config.seed,
        **config.student.inputs,
    )
    sampler = ResumableSampler(len(keyframes), config.trainer.batch_size, config.seed, ranks.rank(), ranks.world_size())
    return DataLoader(
        TeacherStream(frames, stores, config.store.missing, config.store.render),
        batch_sampler=sampler,
        num_workers=config.trainer.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the global random state belongs to the network: a resumed run restores it
    )


def validation(config: DictConfig, index: NuScenesIndex, device: torch.device) -> Callable[[nn.Module], Confusion]:
    """A function that scores a network on the validation split, without teacher and augmentation."""
    keyframes = index.keyframes("val")[: config.trainer.max_val_samples]
    ranks.check_enough(len(keyframes), "validation keyframes")
    inputs = {**config.student.inputs, "depth_stride": None}
    mine = keyframes[ranks.rank() :: ranks.world_size()]
    labels = open_labels(config.data, instantiate(config.grid))
    frames = FrameDataset(mine, labels=labels, augmentation=None, seed=config.seed, **inputs)
    classes = instantiate(config.classes)

    def score(network: nn.Module) -> Confusion:
        loader = DataLoader(
            frames,
            batch_size=1,
            num_workers=min(1, config.trainer.workers),
            collate_fn=collate,
            generator=torch.Generator(),
        )
        return score_network(network, loader, classes, device)

    return score


def resume(trainer: Trainer, last: Path) -> None:
    """Go on from `last.pt`.

    Raises:
        InputError: it belongs to a run with another configuration or number of ranks.
    """
    state = load_training_state(last)
    before, now = _flat(state["config"]), _flat(trainer.facts["config"])
    before["torchrun ranks"], now["torchrun ranks"] = state["world_size"], ranks.world_size()
    before["device"], now["device"] = state["device"], trainer.device.type  # what "auto" meant
    changed = [
        f"{key}={before.get(key)} became {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_TO_CHANGE
    ]
    if changed:
        raise InputError(
            f"{last} belongs to a run with another configuration ({'; '.join(changed[:3])}): "
            "choose another output=, or remove that folder"
        )
    trainer.load_state_dict(state)
    if ranks.rank() == 0:
        print(f"going on from {last}: step {trainer.step} of {trainer.total_steps}", flush=True)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested dict under dotted names."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }
