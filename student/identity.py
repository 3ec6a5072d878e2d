"""What a run is, wherever it lies: what its checkpoints say of it, and whether a saved run is the one asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill import ranks
from distill.checkpoint import code_version, resolve, sha256_of
from distill.errors import InputError
from distill.files import leaves
from distill.losses.objective import Objective
from distill.store import StoreIdentity
from distill.teaching import Provider

# what may differ between a run and its continuation, because no number depends on it; "data." is all below data: where
# things lie, while what they are is compared by its digests
FREE_TO_CHANGE = (
    "trainer.workers", "trainer.checkpoint_every", "trainer.gradient_norms_every", "output", "name", "variant",
    "not_in_name", "device", "cache_dir", "data.",
)  # fmt: skip
# what runs of earlier versions did that do not say it, in kd and its terms and in augmentation
MEANT = {"warmup_steps": 0, "unlabelled": "all", "confidence": "none", "balance_by": "class", "rotation": 0.0}
SQRT = 0.5  # the power of class weights that they called sqrt
# values that name a file; a run is told from another by what the file holds
FILES = (
    "trainer.init", "student.network.encoder.weights", "student.network.proposals.network.weights",
    "student.network.views.weights", "student.network.backbone_weights",
)  # fmt: skip


def run_facts(
    config: DictConfig, objective: Objective, teachers: Sequence[Provider], data: dict[str, str]
) -> dict[str, Any]:
    """What every checkpoint of a run says besides its training state.

    Args:
        config: of the run.
        objective: the terms.
        teachers: to whom they listen.
        data: split -> identity of its keyframes and their files.
    """
    return {
        "config": OmegaConf.to_container(config, resolve=True),
        "code": code_version(),
        "teachers": {each.name: {**each.facts(), "terms": objective.listeners(each.name)} for each in teachers},
        "data": data,
        "files": {key: sha256_of(file) for key in FILES if (file := _named_file(config, key)) is not None},
    }


def check_same_run(state: dict[str, Any], facts: dict[str, Any], last: Path, device: torch.device) -> None:
    """Raise InputError unless the run that was saved is the one that is asked for, wherever its files lie now.

    Args:
        state: of `last.pt`.
        facts: of this call.
        last: where it was saved.
        device: where this call trains.
    """
    before, now = (_said(each["config"]) for each in (state, facts))
    before = {key: SQRT if (_last(key), value) == ("balance", "sqrt") else value for key, value in before.items()}
    before = {
        key: MEANT[_last(key)]
        for key in now
        if key.startswith(("kd.", "trainer.augmentation.")) and _last(key) in MEANT
    } | before
    before["torchrun ranks"], now["torchrun ranks"] = state["world_size"], ranks.world_size()
    before["kind of device"], now["kind of device"] = state["device"], device.type
    files = facts["files"].keys() & state["files"].keys()
    changed = [
        f"{key}={before.get(key)} became {now.get(key)}"
        for key in sorted((before.keys() | now.keys()) - files)
        if before.get(key) != now.get(key) and not _is_free(key)
    ]
    changed += [f"{key} names another file" for key in sorted(files) if state["files"][key] != facts["files"][key]]
    if changed:
        raise InputError(
            f"{last} belongs to a run with another configuration ({'; '.join(changed[:3])}): "
            "choose another output=, or remove that folder"
        )
    _check_same_identities(state, facts, last)


def stores_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The identities of all stores that taught a run."""
    return [store for teacher in facts["teachers"].values() for store in teacher.get("stores", [])]


def _check_same_identities(state: dict[str, Any], facts: dict[str, Any], last: Path) -> None:
    begun, found = ([_speaker(store) for store in stores_of(told)] for told in (state, facts))
    if [StoreIdentity.from_dict(store) for store in stores_of(state)] != [
        StoreIdentity.from_dict(store) for store in stores_of(facts)
    ]:
        raise InputError(
            f"{last} was taught by other stores: by {', '.join(begun) or 'none'} then, by "
            f"{', '.join(found) or 'none'} now: give the stores it began with (teachers.NAME.paths), or choose another "
            "output="
        )
    if not state["data"]:
        print(f"{last} is of an earlier version, which did not note the data it began with: they cannot be compared")
        return
    for split in facts["data"]:
        if state["data"].get(split) != facts["data"][split]:
            raise InputError(
                f"{last} began with other {split} keyframes: tokens, images, LiDAR, calibration or labels are "
                "not the same; give the data it began with (data.root), or choose another output="
            )


def _speaker(store: dict[str, Any]) -> str:
    return f"{store['teacher']} {store['checkpoint_sha256'][:12]}".strip()


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration but those of terms of weight 0, which are not built."""
    said = leaves(config)
    idle = tuple(
        key.removesuffix("weight")
        for key, value in said.items()
        if ".terms." in key and _last(key) == "weight" and not value
    )
    return {key: value for key, value in said.items() if not key.startswith(idle)}


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _is_free(key: str) -> bool:
    if re.fullmatch(r"teachers\.[^.]+\.(paths|folder|cache|cache\..*)", key):  # compared by who speaks there
        return True
    return key in FREE_TO_CHANGE or key.startswith(tuple(each for each in FREE_TO_CHANGE if each[-1] == "."))


def _named_file(config: DictConfig, key: str) -> Path | None:
    """The file that a value names, if it does and the file is there."""
    value = OmegaConf.select(config, key)
    file = None if value is None else resolve(value)
    return file if file is not None and file.is_file() else None
