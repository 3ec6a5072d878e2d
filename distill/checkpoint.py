"""Checkpoints: a network together with everything needed to rebuild it and to go on training.

Two files hold a network: the trainer's `.pt` (network, EMA, optimiser, RNG, ...) and a `.safetensors` export that
holds the EMA weights alone. Both carry the resolved configuration, so that a network is always rebuilt from its own
description and never from a guess.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import subprocess
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from distill.earlier_formats import from_format_1, from_format_2
from distill.errors import InputError
from distill.files import durable, write_durably
from distill.weights import FAMILY, held, load_strictly, read

FORMAT = f"{FAMILY} 3"
# what turns an earlier format into the next one
_EARLIER = {f"{FAMILY} 1": from_format_1, f"{FAMILY} 2": from_format_2}
PACKAGE_PREFIX = "pkg://"
_GIVE = "give the best.pt or last.pt of a run, or a .safetensors export"
_BEGIN_ANEW = "remove it to begin the run anew, or copy the run's best.pt over it to go on from there"
_FACTS = ("epoch", "step", "code", "teachers", "scores", "data", "files")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says.

    Attributes:
        path: the file.
        sha256: of the whole file, hex.
        config: resolved configuration of the run that made it.
        weights: which weights `state` holds, "ema" or "raw".
        state: network weights, name -> tensor.
        facts: the run's other facts: epoch, step, git hash, who taught it, identities of data and files, scores.
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
            InputError: the configuration describes nothing that can be built here, or its weights do not fit.
        """
        try:
            network = instantiate(self.config["student"]["network"])
        except InstantiationException as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise InputError(
                f"{self.path}: the network it describes cannot be built here ({reason}): "
                "use the code that it was trained with"
            ) from error
        load_strictly(network, self.state, str(self.path))
        return network.eval()


def load_checkpoint(path: str, weights: str) -> Checkpoint:
    """Read a `.pt` or `.safetensors` file; `pkg://package/file` names a file shipped with the package.

    Args:
        path: the file.
        weights: "ema" or "raw"; an export holds "ema" alone.

    Raises:
        InputError: no such file, not a checkpoint, or without the weights asked for.
    """
    file = resolve(path)
    content = _read(file, _GIVE)
    state = content.get("network" if weights == "raw" else "ema")
    if state is None:
        raise InputError(f"{file}: an export holds EMA weights alone: use weights=ema or the run's .pt file")
    facts = {key: content[key] for key in _FACTS if key in content}
    return Checkpoint(file, sha256_of(file), content["config"], weights, state, facts)


def is_checkpoint(path: str) -> bool:
    """Whether a file that holds weights is a checkpoint of this project.

    Raises:
        InputError: no such file, or none of weights.
    """
    return str(read(resolve(path), _GIVE).get("format", "")).startswith(FAMILY)


def load_training_state(file: Path) -> dict[str, Any]:
    """Everything in a `.pt` checkpoint, on the CPU.

    Raises:
        InputError: the file is no checkpoint of ours, or an export.
    """
    content = _read(file, _BEGIN_ANEW)
    if "network" not in content:
        raise InputError(f"{file}: an export, which no training can go on from: {_BEGIN_ANEW}")
    return content


def save_training_state(file: Path, content: dict[str, Any]) -> None:
    """Write a `.pt` checkpoint atomically: a crash leaves the previous file."""
    try:
        with durable(file) as stream:
            torch.save({"format": FORMAT, **content}, stream)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{file}: cannot write it ({error}): free some space or choose another output=") from error


def export(checkpoint: Checkpoint, file: Path) -> None:
    """Write the weights and the configuration as one `.safetensors` file, for use as a teacher or on a robot.

    Raises:
        InputError: it is not called so, or cannot be written.
    """
    if file.suffix != ".safetensors":
        raise InputError(f"{file}: an export is a .safetensors file: name it {file.with_suffix('.safetensors').name}")
    metadata = {"format": FORMAT, "facts": json.dumps({"config": checkpoint.config, **checkpoint.facts})}
    tensors = {name: value.contiguous() for name, value in checkpoint.state.items()}
    try:
        write_durably(file, safetensors.torch.save(tensors, metadata))
    except OSError as error:
        raise InputError(f"{file}: cannot write it ({error.strerror}): choose a folder that exists") from error


def _read(file: Path, give: str) -> dict[str, Any]:
    """What a checkpoint of ours holds, whatever its format; an export holds the weights "ema" alone.

    Raises:
        InputError: it is none; the line says what it is, what to do (`give`) and where such files belong.
    """
    content = read(file, give)
    found = str(content.get("format", ""))
    if not found.startswith(FAMILY):
        raise InputError(
            f"{file}: not a checkpoint of this project but {held(content)}: {give}; pretrained image weights belong "
            "to student.network.encoder.weights=, those of GaussianFormer to its teacher.checkpoint="
        )
    if found not in (*_EARLIER, FORMAT):
        raise InputError(f"{file}: {found!r} is later than {FORMAT!r}, the last that is known here: update occ-distill")
    damaged = zipfile.ZipFile(file).testzip() if zipfile.is_zipfile(file) else None  # PyTorch looks at no checksum
    if damaged is not None:
        raise InputError(f"{file}: damaged at {damaged}, its checksum is another: {give}")
    if "facts" in content:
        facts = json.loads(content.pop("facts"))
        del content["format"]
        content = {**facts, "ema": content}
    try:
        for earlier, upgrade in _EARLIER.items():
            content = upgrade(content) if found <= earlier else content
        absent = [key for key in ("config", "ema", *_FACTS) if key not in content]
    except KeyError as error:
        absent = [str(error.args[0])]
    if absent:
        raise InputError(f"{file}: a checkpoint of this project without its {', '.join(absent)}: {give}")
    return content


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
