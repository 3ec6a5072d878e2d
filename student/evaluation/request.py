"""What occ-eval is asked for: the files to score, by name, and the settings in force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import conf
from distill.checkpoint import PACKAGE_PREFIX, Checkpoint
from distill.errors import InputError
from distill.networks.published import Published, open_network
from distill.store import TeacherStore
from distill.store.cache import Cache
from student.evaluation.folder import name_of
from student.evaluation.predictions import PredictionsFolder
from student.export.runtime import OnnxFile

Opened = Checkpoint | Published | OnnxFile | list[TeacherStore] | PredictionsFolder

# data that are given by their root alone are what data=nuscenes says
_NUSCENES = Path(conf.__file__).parent / "data" / "nuscenes.yaml"


def open_files(config: DictConfig) -> dict[str, Opened]:
    """The files of what is asked for, by name.

    Raises:
        InputError: there is nothing to score, or something is missing or damaged.
    """
    if config.checkpoint is None and not config.sources:
        raise InputError("nothing to score: give checkpoint=PATH, or sources=[PATH,...] (see --help)")
    opened: dict[str, Opened] = {}
    if config.checkpoint is not None:
        opened["student"] = open_network(config.checkpoint, config.weights)
    taken = {"student", "teacher"} if opened else set()
    for path in config.sources:
        name = next(name for name in _names(path) if name not in taken)
        taken.add(name)
        opened[name] = _open_file(path, config.weights, cache_of(config))
    networks = any(isinstance(source, Checkpoint | Published | OnnxFile) for source in opened.values())
    if not networks and (config.robustness or config.tta.views):
        raise InputError("robustness= and tta= are about networks: give a checkpoint, or leave them out")
    return opened


def _names(path: str) -> Iterator[str]:
    """A source's short name, and what it is called where others have that one."""
    name = name_of(path)
    yield name
    for number in itertools.count(2):
        yield f"{name}-{number}"


def _open_file(path: str, weights: str, cache: Cache | None) -> Opened:
    if "://" in path and not path.startswith(PACKAGE_PREFIX):
        return [TeacherStore(path, cache)]
    folder = Path(path)
    if folder.suffix == ".onnx":
        return OnnxFile(folder, torch.get_num_threads())
    if path.startswith(PACKAGE_PREFIX) or folder.is_file():
        return open_network(path, weights)
    if not folder.exists():
        raise InputError(f"{path}: no such checkpoint, teacher store or folder of predictions")
    return [TeacherStore(folder)] if (folder / "zarr.json").exists() else PredictionsFolder(folder)


def cache_of(config: DictConfig) -> Cache | None:
    """Of stores in object stores; None: none."""
    return None if config.cache is None else Cache(**config.cache)


def settings_of(config: DictConfig, opened: dict[str, Opened]) -> DictConfig:
    """The first checkpoint's own configuration with the data, teachers, grid and split given to occ-eval in place.

    Raises:
        InputError: nothing says where the data are.
    """
    given: dict[str, Any] = {"teachers": {name: _given(node, nulls=False) for name, node in config.teachers.items()}}
    if config.grid is not None:
        given |= {"grid": config.grid, "classes": config.classes}
    checkpoint = next((source for source in opened.values() if isinstance(source, Checkpoint)), None)
    merged = OmegaConf.merge(OmegaConf.create({} if checkpoint is None else checkpoint.config), given)
    assert isinstance(merged, DictConfig)
    merged.data = data_in_force(config.data, checkpoint)
    merged.split = merged.data.val_split if config.split is None else config.split
    return merged


def data_in_force(given: DictConfig, checkpoint: Checkpoint | None) -> DictConfig:
    """The data of a checkpoint with what is given in place.

    Raises:
        InputError: nothing says where they are.
    """
    # what data did not say in earlier versions, it is of nuScenes
    base = OmegaConf.merge(OmegaConf.load(_NUSCENES), {} if checkpoint is None else checkpoint.config["data"])
    # data=NAME stands for itself, its nulls too: other data than the checkpoint's are not made in its way
    merged = OmegaConf.merge(base, _given(given, nulls=given.name is not None))
    assert isinstance(merged, DictConfig)
    if OmegaConf.is_missing(merged, "root"):
        raise InputError("no checkpoint says where the data are: give data=demo, or data=nuscenes data.root=PATH")
    return merged


def _given(node: DictConfig, nulls: bool) -> dict[str, Any]:
    known = [key for key in node if not OmegaConf.is_missing(node, key)]
    return {str(key): node[key] for key in known if nulls or node[key] is not None}
