"""Networks of other people's that are known by what their files hold.

A file is of a network if it holds exactly that network's names and shapes; nothing is guessed between two.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from distill import ranks
from distill.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, resolve, sha256_of
from distill.errors import InputError
from distill.weights import held, read

_UPSTREAM = "student.network.convention=upstream"
# student= -> what its authors' weights want besides
KNOWN: dict[str, tuple[str, ...]] = {
    "flashocc_m0": (_UPSTREAM,),
    "flashocc_m1": (_UPSTREAM,),
    "flashocc_m2": (_UPSTREAM,),
    "opus_t": (),
    "opus_s": (),
    "opus_m": (),
    "opus_l": (),
}


@dataclass(frozen=True)
class Published:
    """A file of weights that others have published, and whose network it is.

    Attributes:
        path: the file.
        sha256: of the whole file, hex.
        student: the name of its configuration in conf/student.
        wanted: what it is configured to besides, as overrides.
        config: of `grid` and `student`, resolved.
    """

    path: Path
    sha256: str
    student: str
    wanted: tuple[str, ...]
    config: dict[str, Any]

    def network(self) -> nn.Module:
        """The network with the weights of the file, in eval mode.

        Raises:
            InputError: they are not finite.
        """
        network = instantiate(self.config["student"]["network"])
        network.published().load(network, self.path)
        return network.eval()


def open_network(path: str, weights: str) -> Checkpoint | Published:
    """A checkpoint, or weights that others have published, of whom it is said.

    Args:
        path: the file, see `load_checkpoint`.
        weights: of a checkpoint, "ema" or "raw".

    Raises:
        InputError: it is neither, or damaged.
    """
    if is_checkpoint(path):
        return load_checkpoint(path, weights)
    found = recognised(resolve(path))
    if ranks.rank() == 0:
        wanted = " ".join([f"student={found.student}", *found.wanted])
        print(f"{path}: by its names and shapes weights of {wanted}", flush=True)
    return found


def recognised(file: Path) -> Published:
    """The network whose weights a file holds.

    Raises:
        InputError: no such file, damaged, or of no network that is known, or of several.
    """
    content = read(file, "give a checkpoint, or a file of weights as its authors published it")
    found = []
    for student, wanted in KNOWN.items():
        config = _config(student, wanted)
        with torch.device("meta"):
            network = instantiate(config["student"]["network"])
        if network.published().fits(network, file, content):
            found.append(Published(file, sha256_of(file), student, wanted, config))
    if len(found) != 1:
        fitting = " and ".join(published.student for published in found) or f"none of {', '.join(KNOWN)}"
        raise InputError(
            f"{file}: holds {held(content)}, by names and shapes those of {fitting}: give a checkpoint of this "
            "project, or the whole file that the authors of one of these networks published"
        )
    return found[0]


def _config(student: str, wanted: tuple[str, ...]) -> dict[str, Any]:
    # within one of the programs Hydra looks into conf/ already, and refuses to begin twice
    begun = GlobalHydra.instance().is_initialized()
    with nullcontext() if begun else initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", f"+student={student}", *wanted])
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
