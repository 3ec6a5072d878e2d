"""occ-dump: run a teacher over keyframes and write what it knows into a store."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from distill import ranks
from distill.bev import bev_log_probs
from distill.command import command
from distill.errors import InputError
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset, collate, to_device
from distill.nuscenes.index import Keyframes, NuScenesIndex
from distill.store import GaussianKind, StoreIdentity, StoreWriter
from teacher_dump.gate import Gate
from teacher_dump.panel import panel
from teacher_dump.teachers import Teacher, TeacherPrediction


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
        labels = open_labels(self.config.data, self.teacher.grid)
        frames = FrameDataset(keyframes, labels=labels, augmentation=None, seed=0, **self.teacher.inputs)
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
                batch = to_device(batch, self.device)
                prediction = self._ask(batch)
                if progress.n == 0:
                    self._inspect(batch, prediction)
                for sample in self._samples(batch, prediction):
                    writing.append(pool.submit(self.writer.write, **sample))
                    # a bounded queue: the teacher waits for the disk instead of filling the memory
                    while len(writing) > 2 * self.config.dump.writers:
                        writing.popleft().result()
                    progress.update()
                progress.set_postfix_str(f"mIoU {self.gate.miou:.1f}")
            for future in writing:
                future.result()

    def _inspect(self, batch: dict[str, Any], prediction: TeacherPrediction) -> None:
        """The first keyframe: its Gaussians must say what its voxels do, and a picture of it goes beside the store."""
        voxel_BXYZC, covered_BXYZ, gaussians = prediction
        if self.writer.store.identity.gaussians is not None and gaussians is not None:
            token, covered_XYZ = batch["token"][0], None if covered_BXYZ is None else covered_BXYZ[0]
            stored = self.writer.as_stored(token, gaussians[0]).to(self.device)
            self.gate.check_gaussians(
                token, stored, self.teacher.grid, batch["lidar2ego"][0], voxel_BXYZC[0], covered_XYZ
            )
        if ranks.rank() == 0:
            picture = panel(batch, prediction, self.teacher.grid, self.gate.confusion.classes)
            path = Path(self.config.store.path).with_suffix(".png")
            try:
                Image.fromarray(picture).save(path)
            except OSError as error:
                raise InputError(
                    f"{path}: cannot write it ({error.strerror}): free some space, or make it writable"
                ) from error

    def _samples(self, batch: dict[str, Any], prediction: TeacherPrediction) -> list[dict[str, Any]]:
        """Show a batch to the gate; arguments of `StoreWriter.write` for each sample."""
        free = self.gate.confusion.classes.free
        voxel_BXYZC, covered_BXYZ, gaussians = prediction
        bev_BXYC = bev_log_probs(voxel_BXYZC, free, covered_BXYZ).exp()
        semantics_BXYZ = voxel_BXYZC.argmax(-1).to(torch.uint8)
        if covered_BXYZ is None:
            covered_BXYZ = torch.ones_like(semantics_BXYZ, dtype=torch.bool)
        # a teacher that has not modelled a voxel has not found anything there
        found_BXYZ = semantics_BXYZ.masked_fill(~covered_BXYZ, free).cpu().numpy()
        samples = []
        for index, token in enumerate(batch["token"]):
            self.gate.check_finite(token, voxel_BXYZC[index])
            if batch["labelled"][index]:
                labels, mask = batch["semantics"][index], batch["mask_camera"][index]
                self.gate.judge(found_BXYZ[index], labels.cpu().numpy(), mask.cpu().numpy())
            samples.append(
                {
                    "token": token,
                    "voxel_log_probs": voxel_BXYZC[index].cpu().numpy(),
                    "bev_probs": bev_BXYC[index].cpu().numpy(),
                    "coverage": covered_BXYZ[index].cpu().numpy(),
                    "gaussians": gaussians and gaussians[index],
                }
            )
        return samples

    def _ask(self, batch: dict[str, Any]) -> TeacherPrediction:
        """The teacher's prediction, uniform where it covers nothing.

        Raises:
            InputError: it is no `TeacherPrediction`.
        """
        prediction = self.teacher.predict(batch)
        if not isinstance(prediction, TeacherPrediction):
            raise InputError(
                f"{type(self.teacher).__name__}.predict returns a {type(prediction).__name__}: "
                "let it return a teacher_dump.teachers.TeacherPrediction"
            )
        voxel_BXYZC, covered_BXYZ, gaussians = prediction
        if covered_BXYZ is not None:
            voxel_BXYZC = voxel_BXYZC.masked_fill(~covered_BXYZ.unsqueeze(-1), -math.log(voxel_BXYZC.shape[-1]))
        return TeacherPrediction(voxel_BXYZC, covered_BXYZ, gaussians)


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
    scored = f"teacher mIoU {gate.miou:.2f} ({gate.measure}) on the {gate.labelled} labelled ones"
    say(f"dumped {len(todo)} keyframes; {scored}")
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
        voxels=config.dump.gaussians != "only",
        gaussians=gaussians_of(config, teacher),
    )
    return StoreWriter.open(config.store.path, identity, index.tokens, index.scenes)


def gaussians_of(config: DictConfig, teacher: Teacher) -> GaussianKind | None:
    """The Gaussians that are to be stored; None for none.

    Raises:
        InputError: the teacher has none, or dump.gaussians is no choice.
    """
    if config.dump.gaussians not in (False, True, "only"):
        raise InputError(f"dump.gaussians={config.dump.gaussians}: choose false, true or only")
    if not config.dump.gaussians:
        return None
    kind: GaussianKind | None = getattr(teacher, "gaussians", None)
    if kind is None:
        raise InputError(f"teacher {config.teacher.name} predicts no Gaussians: set dump.gaussians=false")
    return kind


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
