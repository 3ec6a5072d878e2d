"""Checkpoints: a network together with everything needed to rebuild it and to go on training.

Two files hold a network: the trainer's `.pt` (network, EMA, optimiser, RNG, ...) and a `.safetensors` export that
holds the EMA weights alone. Both carry the resolved configuration, so that a network is always rebuilt from its own
description and never from a guess.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import pickle
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from distill.errors import InputError

FORMAT = "occ-distill checkpoint 1"
PACKAGE_PREFIX = "pkg://"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says.

    Attributes:
        path: the file.
        sha256: of the whole file, hex.
        config: resolved configuration of the run that made it.
        weights: which weights `state` holds, "ema" or "raw".
        state: network weights, name -> tensor.
        facts: the run's other facts: epoch, step, git hash, store identity, scores.
    """

    path: Path
    sha256: str
    config: dict[str, Any]
    weights: str
    state: dict[str, torch.Tensor]
    facts: dict[str, Any]

    def network(self) -> nn.Module:
        """The network, rebuilt from its own configuration, in eval mode.

        Raises:
            InputError: the weights do not fit the network that the configuration describes.
        """
        description = OmegaConf.create({"network": self.config["student"]["network"]}).network
        if "encoder" in description:
            description.encoder.weights = "none"  # pretrained weights are in `state`; their file may be gone
        network = instantiate(description)
        load_strictly(network, self.state, str(self.path))
        return network.eval()


def load_strictly(network: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load `state` into `network`; every name and shape must agree.

    Raises:
        InputError: names the first differences.
    """
    expected = network.state_dict()
    differences = [f"{name} is missing" for name in expected if name not in state]
    differences += [f"{name} is unexpected" for name in state if name not in expected]
    differences += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if differences:
        shown = "; ".join(differences[:3])
        raise InputError(
            f"{origin}: weights of another architecture, {len(differences)} differences ({shown}): "
            "give the checkpoint that belongs to this network"
        )
    network.load_state_dict(state)


def load_checkpoint(path: str, weights: str) -> Checkpoint:
    """Read a `.pt` or `.safetensors` file; `pkg://package/file` names a file shipped with the package.

    Args:
        path: the file.
        weights: "ema" or "raw"; an export holds "ema" alone.

    Raises:
        InputError: no such file, not a checkpoint, or without the weights asked for.
    """
    file = resolve(path)
    if not file.is_file():
        raise InputError(f"{file}: no such checkpoint: give the best.pt or last.pt of a run, or a .safetensors export")
    if file.suffix == ".safetensors":
        state, facts = _read_export(file)
        holds = "ema"
    else:
        facts = load_training_state(file)
        state, holds = facts.pop("network" if weights == "raw" else "ema"), weights
    if holds != weights:
        raise InputError(f"{file}: an export holds EMA weights alone: use weights=ema or the run's .pt file")
    kept = {key: facts[key] for key in ("epoch", "step", "code", "stores", "scores")}
    return Checkpoint(file, sha256_of(file), facts["config"], holds, state, kept)


def load_training_state(file: Path) -> dict[str, Any]:
    """Everything in a `.pt` checkpoint, on the CPU.

    Raises:
        InputError: the file is no checkpoint of ours.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = type(error).__name__
        raise InputError(f"{file}: not a checkpoint ({reason}): give a run's best.pt or last.pt") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file}: not a checkpoint of this project (format is not {FORMAT!r}): give a run's best.pt")
    return content


def save_training_state(file: Path, content: dict[str, Any]) -> None:
    """Write a `.pt` checkpoint atomically: a crash leaves the previous file."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            torch.save({"format": FORMAT, **content}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{file}: cannot write it ({error}): free some space or choose another output=") from error


def export(checkpoint: Checkpoint, file: Path) -> None:
    """Write the weights and the configuration as one `.safetensors` file, for use as a teacher or on a robot."""
    metadata = {"format": FORMAT, "facts": json.dumps({"config": checkpoint.config, **checkpoint.facts})}
    save_file({name: value.contiguous() for name, value in checkpoint.state.items()}, file, metadata)


def _read_export(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise InputError(f"{file}: not a safetensors file ({error}): export it again") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{file}: weights without a description: make the file with `python -m student.export`")
    return state, json.loads(metadata["facts"])


def resolve(path: str) -> Path:
    """A path as given, or inside an installed package for `pkg://package/file`."""
    if path.startswith(PACKAGE_PREFIX):
        package, _, rest = path.removeprefix(PACKAGE_PREFIX).partition("/")
        return Path(str(importlib.resources.files(package))) / rest
    return Path(path)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_version() -> str:
    """Package version and, from a git checkout, the commit, with "+" behind it when files were changed."""
    root = Path(__file__).resolve().parent.parent
    released = version("occ-distill")
    if not (root / ".git").exists():
        return released
    asked = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{released} {asked.stdout.strip()}".strip()
