"""occ-dump: run a teacher over keyframes and write what it knows into a store."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from distill import ranks
from distill.bev import bev_log_probs
from distill.command import command
from distill.errors import InputError
from distill.nuscenes.dataroot import open_dataroot
from distill.nuscenes.frames import FrameDataset, collate, to_device
from distill.nuscenes.index import Keyframes, NuScenesIndex
from distill.store import StoreIdentity, StoreWriter
from teacher_dump.gate import Gate
from teacher_dump.teachers import Teacher


@dataclass
class Dump:
    """One rank's part of a dump: its teacher, its store, its keyframes."""

    config: DictConfig
    teacher: Teacher
    writer: StoreWriter
    gate: Gate
    device: torch.device

    def run(self, keyframes: Keyframes) -> None:
        """Dump `keyframes`: loading, teacher, compression and writing overlap."""
        frames = FrameDataset(keyframes, labels=True, augmentation=None, seed=0, **self.teacher.inputs)
        loader = torch.utils.data.DataLoader(
            frames,
            batch_size=self.config.dump.batch_size,
            num_workers=self.config.dump.workers,
            collate_fn=collate,
        )
        progress = tqdm(total=len(keyframes), desc="dump", unit="keyframe", disable=ranks.rank() != 0)
        writing: deque[Future[None]] = deque()
        with progress, ThreadPoolExecutor(self.config.dump.writers) as pool:
            for batch in loader:
                for sample in self._predict(to_device(batch, self.device)):
                    writing.append(pool.submit(self.writer.write, **sample))
                    # a bounded queue: the teacher waits for the disk instead of filling the memory
                    while len(writing) > 2 * self.config.dump.writers:
                        writing.popleft().result()
                    progress.update()
                progress.set_postfix_str(f"mIoU {self.gate.miou:.1f}")
            for future in writing:
                future.result()

    def _predict(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Ask the teacher and the gate about a batch; arguments of `StoreWriter.write` for each sample."""
        voxel_BXYZC = self.teacher.predict(batch)
        bev_BXYC = bev_log_probs(voxel_BXYZC, free=self.gate.score.classes.free).exp()
        semantics_BXYZ = voxel_BXYZC.argmax(-1).to(torch.uint8).cpu().numpy()
        samples = []
        for index, token in enumerate(batch["token"]):
            self.gate.check_finite(token, voxel_BXYZC[index])
            if batch["labelled"][index]:
                labels, mask = batch["semantics"][index], batch["mask_camera"][index]
                self.gate.judge(semantics_BXYZ[index], labels.cpu().numpy(), mask.cpu().numpy())
            samples.append(
                {
                    "token": token,
                    "voxel_log_probs": voxel_BXYZC[index].cpu().numpy(),
                    "bev_probs": bev_BXYC[index].cpu().numpy(),
                }
            )
        return samples


@command("dump")
def main(config: DictConfig) -> None:
    """Dump the configured splits; see conf/dump.yaml."""
    index = open_dataroot(config.data)
    chosen = [token for split in config.dump.splits for token in index.keyframes(split).tokens]
    chosen = chosen[: config.dump.max_samples]
    ranks.check_enough(len(chosen), "keyframes")
    classes = instantiate(config.classes)
    teacher: Teacher = instantiate(config.teacher)
    if teacher.grid != instantiate(config.grid):
        raise InputError(f"the teacher predicts on grid {teacher.grid.name}: dump it with grid={teacher.grid.name}")
    writer = open_writer(config, index, teacher)
    mine = chosen[ranks.rank() :: ranks.world_size()]
    todo = outstanding(config, writer, mine)
    say(f"{len(mine) - len(todo)} of {len(mine)} keyframes are present in {config.store.path}, {len(todo)} to dump")
    if not todo:
        say(writer.summary())
        return
    device = ranks.device(config.device)
    gate = Gate(config.gate.min_miou, config.gate.after, classes)
    Dump(config, teacher.to(device), writer, gate, device).run(index.select(todo))
    say(f"dumped {len(todo)} keyframes; teacher mIoU {gate.miou:.2f} on the {gate.labelled} labelled ones")
    say(writer.summary())


def open_writer(config: DictConfig, index: NuScenesIndex, teacher: Teacher) -> StoreWriter:
    """Create the store of this dump or go on with it; a store of another teacher is refused."""
    description = OmegaConf.to_container(config.teacher, resolve=True)
    assert isinstance(description, dict)
    description.pop("checkpoint", None)  # known by its digest, wherever the file lies
    identity = StoreIdentity(
        teacher=config.teacher.name,
        checkpoint_sha256=teacher.checkpoint_sha256,
        config={str(key): value for key, value in description.items()},
        grid=teacher.grid,
        classes=instantiate(config.classes).names,
    )
    return StoreWriter.open(config.store.path, identity, index.tokens, index.scenes)


def outstanding(config: DictConfig, writer: StoreWriter, mine: list[str]) -> list[str]:
    """The tokens of this rank that are not in the store, or not intact when dump.verify asks."""
    if config.dump.verify:
        say(f"{writer.discard_damaged(mine)} damaged samples found and discarded")
    absent = set(writer.missing(mine))
    return [token for token in mine if config.dump.overwrite or token in absent]


def say(message: str) -> None:
    """Print one line, saying which rank speaks where there are several."""
    speaker = f"rank {ranks.rank()}: " if ranks.world_size() > 1 else ""
    print(f"{speaker}{message}", flush=True)
