"""The training loop, top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from distill import ranks
from distill.checkpoint import save_training_state
from distill.errors import InputError
from distill.frame import Frame
from distill.metrics import Confusion
from student.learner import Learner
from student.preemption import Preemption
from student.sampler import ResumableSampler

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def emulated(precision: str, device: torch.device) -> bool:
    """Whether a device has no instructions for a precision, and takes many times longer than in fp32."""
    if precision != "bf16":
        return False
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


class Trainer:
    """Trains a network by its objective, validates it each epoch and keeps `last.pt` and `best.pt`.

    Args:
        config: the `trainer` node of the configuration.
        learner: the network and the objective whose weighted terms are summed and minimised.
        loader: training batches, drawn by a `ResumableSampler`.
        validate: scores a network on the validation frames of all ranks; None where none has labels.
        output: folder of checkpoints and logs.
        facts: what every checkpoint carries besides the training state: configuration, code, stores.
        device: where to train.
    """

    def __init__(
        self,
        config: DictConfig,
        learner: Learner,
        loader: DataLoader,
        validate: Callable[[nn.Module], Confusion] | None,
        output: Path,
        facts: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.config = config
        self.device = device
        self.learner = learner.to(device)
        self.network, self.objective = learner.network, learner.objective
        self.loader = loader
        self.sampler: ResumableSampler = loader.batch_sampler  # type: ignore[assignment]
        self.validate = validate
        self.output = output
        self.facts = facts
        self.optimizer = torch.optim.AdamW(learner.trained(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.total_steps = config.epochs * self.sampler.steps_per_epoch
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate_factor)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        from timm.utils import ModelEmaV3  # seconds, which a mistaken command line should not take

        # timm's EMA averages buffers (batch-norm statistics) along with the parameters
        self.ema = ModelEmaV3(self.network, decay=config.ema_decay, use_warmup=True)
        self.preemption = Preemption()
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.sums: dict[str, float] = defaultdict(float)
        parallel = ranks.world_size() > 1
        self.parallel = DistributedDataParallel(self.learner) if parallel else self.learner
        self.board = SummaryWriter(str(output / "tensorboard")) if ranks.rank() == 0 else None

    def _learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then a half cosine to zero."""
        warmup = self.config.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, self.total_steps - warmup))))

    def fit(self) -> None:
        """Train from wherever this trainer stands to the last epoch.

        Raises:
            SystemExit: SIGTERM has come; `last.pt` holds every step that was taken.
        """
        with self.preemption:
            for epoch in range(len(self.history), self.config.epochs):
                self._train_epoch(epoch)
                if ranks.world_size() > 1:  # ranks see different frames, so their batch-norm statistics differ a little
                    for value in self.ema.module.state_dict().values():
                        dist.broadcast(value, src=0)
                self.save("last.pt")
                with self.preemption.saved():
                    scores = self._scores(epoch)
                self._close_epoch(epoch, scores)
        if self.board is not None:
            self.board.close()

    def _train_epoch(self, epoch: int) -> None:
        self.network.train()
        first = self.step - epoch * self.sampler.steps_per_epoch
        self.sampler.start_at(epoch, first)
        progress = tqdm(
            total=self.sampler.steps_per_epoch,
            initial=first,
            desc=f"epoch {epoch + 1}/{self.config.epochs}",
            unit="step",
            disable=ranks.rank() != 0,
        )
        began = waited_from = time.perf_counter()
        waited = 0.0
        with progress:
            for frame in self.loader:
                waited += time.perf_counter() - waited_from
                values = self._train_step(frame.to(self.device))
                progress.update()
                share = waited / (time.perf_counter() - began)
                progress.set_postfix_str(f"loss {values['loss']:.3f}, {share:.0%} waiting for data")
                if self.preemption.asked() or self.step % self.config.checkpoint_every == 0:
                    self.save("last.pt")
                self.preemption.obey()
                waited_from = time.perf_counter()

    def _train_step(self, frame: Frame) -> dict[str, float]:
        """One optimiser step; returns the terms of this rank, and the loss."""
        terms = self.parallel(frame, self.step)
        weighted = {name: value for name, (_, value) in terms.items()}
        loss = torch.stack(list(weighted.values())).sum()
        values = _numbers({**weighted, **{f"{name}_raw": raw for name, (raw, _) in terms.items()}, "loss": loss})
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"the loss is {values['loss']} at step {self.step} (tokens {', '.join(frame.token)}): "
                "lower trainer.learning_rate, or look at these samples; last.pt is intact"
            )
        self._compare_gradients(weighted)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.learner.trained(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.step += 1
        self.ema.update(self.network, step=self.step)
        self._record(values, frame)
        return values

    def _compare_gradients(self, weighted: dict[str, torch.Tensor]) -> None:
        """Log how strongly each term pulls at the network, beside all supervised ones together."""
        every = self.config.gradient_norms_every
        if every is None or self.step % every or self.board is None:
            return
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        scale = self.scaler.get_scale()  # as in the step itself, small gradients would vanish in half precision
        scaled = {name: scale * value for name, value in weighted.items()}
        norms = {name: norm / scale for name, norm in self.objective.gradient_norms(scaled, trained).items()}
        for name, norm in norms.items():
            self.board.add_scalar(f"gradient/{name}", norm, self.step)
            if norms["supervised"]:
                self.board.add_scalar(f"gradient_over_supervised/{name}", norm / norms["supervised"], self.step)

    def _record(self, values: dict[str, float], frame: Frame) -> None:
        for name, value in values.items():
            self.sums[name] += value
            if self.board is not None:
                self.board.add_scalar(f"train/{name}", value, self.step)
        self.sums["steps"] += 1
        if frame.teachers:
            untaught = ~torch.stack([told.taught for told in frame.teachers.values()]).any(0)
            if all(teacher.passes_labelled for teacher in self.learner.teachers.values()):
                untaught &= ~frame.labelled
            self.sums["frames_without_teacher"] += int(untaught.sum())

    def _scores(self, epoch: int) -> dict[str, float]:
        """Of the EMA weights on the validation frames, percent; empty where none has labels.

        Raises:
            InputError: the labels leave the score undefined.
        """
        if self.validate is None:
            return {}
        with self.learner.simulating(self.ema.module):
            score = self.validate(self.ema.module).score()
        found = {"val_miou": float(score.miou), "val_geometric_iou": float(score.geometric_iou)}
        if not math.isfinite(found["val_miou"]):
            raise InputError(
                f"the validation mIoU is undefined after epoch {epoch + 1}: no visible voxel of the labelled keyframes "
                "is of a scored class; look at their mask_camera; last.pt is intact"
            )
        return found

    def _close_epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """Log the epoch and keep its checkpoints."""
        steps = self.sums.pop("steps")
        untaught = self.sums.pop("frames_without_teacher", 0)
        entry: dict[str, Any] = {"epoch": epoch + 1, "step": self.step, "frames_without_teacher": int(untaught)}
        entry |= {f"train_{name}": value / steps for name, value in self.sums.items()} | scores
        self.sums.clear()
        best = bool(scores) and all(scores["val_miou"] > earlier["val_miou"] for earlier in self.history)
        self.history.append(entry)
        if self.board is not None:
            for name, value in scores.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, self.step)
            lines = "".join(json.dumps(line) + "\n" for line in self.history)
            (self.output / "metrics.jsonl").write_text(lines)
            if untaught:
                print(f"epoch {epoch + 1}: {int(untaught)} frames had no teacher")
            if scores:
                print(
                    f"epoch {epoch + 1}: val mIoU {scores['val_miou']:.2f}, IoU {scores['val_geometric_iou']:.2f} (EMA)"
                )
        if best:
            self.save("best.pt")
        self.save("last.pt")

    def save(self, name: str) -> None:
        """Write a checkpoint from the first rank; all ranks must call it."""
        random = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        gathered: list[Any] = [random]
        if ranks.world_size() > 1:
            gathered = [None] * ranks.world_size()
            dist.all_gather_object(gathered, random)
        if ranks.rank() == 0:
            save_training_state(self.output / name, self.state_dict() | {"random": gathered})

    def state_dict(self) -> dict[str, Any]:
        """Everything but the random state; tensors and plain values alone."""
        return self.facts | {
            "network": self.network.state_dict(),
            "objective": self.objective.state_dict(),
            "providers": self.learner.teachers.state_dict(),
            "int8": None if self.learner.int8 is None else self.learner.int8.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": len(self.history),
            "world_size": ranks.world_size(),
            "device": self.device.type,
            "scores": self.history[-1] if self.history else {},
            "history": self.history,
            "sums": dict(self.sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where the run stood when `state` was saved."""
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        # teachers of earlier versions had no weights
        self.learner.teachers.load_state_dict(state.get("providers", {}))
        if self.learner.int8 is not None:
            self.learner.int8.load_state_dict(state["int8"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.history = state["history"]
        self.sums = defaultdict(float, state["sums"])
        random = state["random"][ranks.rank()]
        torch.set_rng_state(random["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)


def _numbers(scalars: dict[str, torch.Tensor]) -> dict[str, float]:
    """Their values, in one copy from the device."""
    return dict(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
