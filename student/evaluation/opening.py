"""From the configuration of occ-eval to what is scored: the sources, and the labelled keyframes they are scored on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import conf
from distill import ranks
from distill.checkpoint import PACKAGE_PREFIX, Checkpoint, load_checkpoint
from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES, ClassSet
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.index import Keyframes, NuScenesIndex
from distill.nuscenes.inventory import Inventory, place_of_labels, settle_missing, summary, take_stock
from distill.nuscenes.labels import LabelSource
from distill.store import StoreIdentity, TeacherStore
from student.evaluation.folder import name_of
from student.evaluation.predictions import PredictionsFolder
from student.evaluation.sources import CheckpointSource, PredictionsSource, Source, StoreSource
from student.stream import find_store, not_compared

Opened = Checkpoint | list[TeacherStore] | PredictionsFolder

# data that are given by their root alone are what data=nuscenes says
_NUSCENES = Path(conf.__file__).parent / "data" / "nuscenes.yaml"
_CLASSES = {OCC3D: OCC3D_CLASSES, SURROUNDOCC: SURROUNDOCC_CLASSES}


@dataclass(frozen=True)
class Subject:
    """What is scored on what.

    Attributes:
        data: the `data` node in force.
        split: of its keyframes.
        index: all keyframes of its dataroot.
        grid, classes: of labels and predictions.
        labels: where they are read.
        keyframes: of the split; without export=, those with labels alone.
        labelled: those with labels.
        unlabelled: how many of the split have none.
        told: what there is, in a table.
        sources: in the order of the report.
    """

    data: DictConfig
    split: str
    index: NuScenesIndex
    grid: VoxelGrid
    classes: ClassSet
    labels: LabelSource
    keyframes: Keyframes
    labelled: Keyframes
    unlabelled: int
    told: str
    sources: list[Source]


def open_subject(
    config: DictConfig, opened: dict[str, Opened], settings: DictConfig, device: torch.device, output: Path
) -> Subject:
    """Open everything, and refuse what cannot be scored before anything is.

    Args:
        config: of conf/eval.yaml.
        opened: see `open_files`.
        settings: see `settings_of`.
        device: for networks.
        output: where the list of bad predictions is written.

    Raises:
        InputError: a source is on another grid or incomplete, or no keyframe has labels.
    """
    grid, classes = _grid(settings, opened)
    index = open_dataroot(settings.data)
    labels = open_labels(settings.data, grid)
    stock = _take_stock(config, opened, settings, index, labels, output)
    labelled = stock.keyframes.where([token in stock.labelled for token in stock.keyframes.tokens])
    unlabelled = len(stock.keyframes) - len(labelled)
    if config.export is None and not labelled:
        raise InputError(
            f"none of the {unlabelled} keyframes of {settings.data.root}, split {settings.split}, has labels on grid "
            f"{grid.name} ({place_of_labels(stock, labels)}): there is nothing to score against; export= writes "
            "predictions without scoring"
        )
    keyframes = labelled if config.export is None else stock.keyframes
    told = summary({settings.split: stock}, labels, {})
    subject = Subject(
        settings.data, settings.split, index, grid, classes, labels, keyframes, labelled, unlabelled, told, []
    )
    views = instantiate(config.tta, _convert_="all")["views"]
    for name, source in opened.items():
        subject.sources.append(_source(name, source, subject, views, device, output))
    if config.checkpoint is not None:
        _add_teacher(subject, opened["student"], settings.store.paths, device)
    for stored in subject.sources:
        if isinstance(stored, StoreSource):
            _say_other_frames(stored, stock)
    if config.export is not None:
        check_export(Path(config.export), subject.sources, subject.keyframes.tokens)
    return subject


def check_export(export: Path, sources: Sequence[Source], tokens: Sequence[str]) -> None:
    """Raise InputError where the predictions of `sources` for the keyframes `tokens` would mix with others."""
    read = [source.folder.path for source in sources if isinstance(source, PredictionsSource)]
    for source in sources:
        folder = export / source.name
        into = next((path for path in read if folder.resolve().is_relative_to(path.resolve())), None)
        if into is not None:
            raise InputError(
                f"export={export}: the predictions of {source.name} would be written into {into}, which is scored: "
                "choose another export="
            )
        others = {file.stem for file in folder.glob("*.npz")} - set(tokens)
        if others:
            raise InputError(
                f"{folder} holds {len(others)} predictions from elsewhere, of keyframes that are not asked for now "
                f"(first {min(others)}): choose another export=, or remove that folder"
            )


def _take_stock(
    config: DictConfig,
    opened: dict[str, Opened],
    settings: DictConfig,
    index: NuScenesIndex,
    labels: LabelSource,
    output: Path,
) -> Inventory:
    """The keyframes of the split whose files are there, as far as networks and pictures need them."""
    networks = [source for source in opened.values() if isinstance(source, Checkpoint)]
    stock = take_stock(
        index.keyframes(settings.split)[: config.max_samples],
        labels,
        _CLASSES[labels.grid].free,
        cameras=bool(networks or config.pictures),
        lidar=any(network.config["student"]["inputs"]["lidar"] for network in networks),
    )
    settle_missing({settings.split: stock}, settings.data.missing, output / "missing_files.txt")
    if settings.data.missing == "skip":
        stock = _in_all_stores(stock, opened)
    if not stock.keyframes:
        raise InputError(f"split {settings.split} has no keyframe that is whole: there is nothing to score")
    return stock


def _in_all_stores(stock: Inventory, opened: dict[str, Opened]) -> Inventory:
    """Without the keyframes that one of the teacher stores lacks, so that all sources are scored on the same ones."""
    for name, stores in opened.items():
        if isinstance(stores, list):
            held = [find_store(stores, token) is not None for token in stock.keyframes.tokens]
            if not all(held) and ranks.rank() == 0:
                print(f"left out: {held.count(False)} of {len(held)} keyframes that {name} lacks", flush=True)
            stock = replace(stock, keyframes=stock.keyframes.where(held))
    return replace(stock, labelled=stock.labelled & set(stock.keyframes.tokens))


def _say_other_frames(source: StoreSource, stock: Inventory) -> None:
    different: dict[str, list[str]] = {}
    for store in reversed(source.stores):
        different |= store.other_frames(stock.digests)
    if ranks.rank() > 0:
        return
    for line in not_compared(source.stores):
        print(line, flush=True)
    if different:
        token, sources = next(iter(different.items()))
        print(
            f"{source.path}: {len(different)} of {len(stock.keyframes)} keyframes were dumped from other files than "
            f"those of {stock.keyframes.root} (first {token}: {', '.join(sources)}): it is scored by what it saw then"
        )


def open_files(config: DictConfig) -> dict[str, Opened]:
    """The files of what is asked for, by name.

    Raises:
        InputError: there is nothing to score, or something is missing or damaged.
    """
    if config.checkpoint is None and not config.sources:
        raise InputError("nothing to score: give checkpoint=PATH, or sources=[PATH,...] (see --help)")
    opened: dict[str, Opened] = {}
    if config.checkpoint is not None:
        opened["student"] = load_checkpoint(config.checkpoint, config.weights)
    taken = {"student", "teacher"} if opened else set()
    for path in config.sources:
        name = next(name for name in _names(path) if name not in taken)
        taken.add(name)
        opened[name] = _open_file(path, config.weights)
    networks = any(isinstance(source, Checkpoint) for source in opened.values())
    if not networks and (config.robustness or config.tta.views):
        raise InputError("robustness= and tta= are about networks: give a checkpoint, or leave them out")
    return opened


def _names(path: str) -> Iterator[str]:
    """A source's short name, and what it is called where others have that one."""
    name = name_of(path)
    yield name
    for number in itertools.count(2):
        yield f"{name}-{number}"


def _open_file(path: str, weights: str) -> Opened:
    folder = Path(path)
    if path.startswith(PACKAGE_PREFIX) or folder.is_file():
        return load_checkpoint(path, weights)
    if not folder.exists():
        raise InputError(f"{path}: no such checkpoint, teacher store or folder of predictions")
    return [TeacherStore(folder)] if (folder / "zarr.json").exists() else PredictionsFolder(folder)


def settings_of(config: DictConfig, opened: dict[str, Opened]) -> DictConfig:
    """The first checkpoint's own configuration with the data, store, grid and split given to occ-eval in place.

    Raises:
        InputError: nothing says where the data are.
    """
    # data=NAME stands for itself, its nulls too: other data than the checkpoint's are not made in its way
    given: dict[str, Any] = {
        "data": _given(config.data, nulls=config.data.name is not None),
        "store": _given(config.store, nulls=False),
    }
    if config.grid is not None:
        given |= {"grid": config.grid, "classes": config.classes}
    checkpoint = next((source for source in opened.values() if isinstance(source, Checkpoint)), None)
    base = {"data": OmegaConf.load(_NUSCENES)} if checkpoint is None else checkpoint.config
    merged = OmegaConf.merge(OmegaConf.create(base), given)
    assert isinstance(merged, DictConfig)
    if OmegaConf.is_missing(merged.data, "root"):
        raise InputError("no checkpoint says where the data are: give data=demo, or data=nuscenes data.root=PATH")
    merged.split = merged.data.val_split if config.split is None else config.split
    return merged


def _given(node: DictConfig, nulls: bool) -> dict[str, Any]:
    known = [key for key in node if not OmegaConf.is_missing(node, key)]
    return {str(key): node[key] for key in known if nulls or node[key] is not None}


def _grid(settings: DictConfig, opened: dict[str, Opened]) -> tuple[VoxelGrid, ClassSet]:
    if settings.get("grid") is not None:
        return instantiate(settings.grid), instantiate(settings.classes)
    stores = [source[0] for source in opened.values() if isinstance(source, list)]
    grid = stores[0].grid if stores else OCC3D
    if grid not in _CLASSES:
        raise InputError(f"{stores[0].path} is on grid {grid.name}, which has no labels: give grid=")
    return grid, _CLASSES[grid]


def _source(
    name: str, opened: Opened, subject: Subject, views: list[Any], device: torch.device, output: Path
) -> Source:
    if isinstance(opened, PredictionsFolder):
        offenders = output / "bad_predictions.csv"
        others = opened.check(subject.keyframes, subject.index.tokens, subject.labels, subject.classes, offenders)
        return PredictionsSource(name, opened, others)
    if isinstance(opened, Checkpoint):
        network = CheckpointSource(name, opened, views, device)
        if network.grid != subject.grid:
            raise InputError(
                f"{network.path} is on grid {network.grid.name}, this evaluation on {subject.grid.name}: "
                "give sources of one grid"
            )
        return network
    stored = StoreSource(name, opened, subject.grid, subject.classes, device)
    missing = stored.missing(subject.keyframes.tokens)
    if missing:
        raise InputError(
            f"{stored.path} lacks {len(missing)} of {len(subject.keyframes)} keyframes ({', '.join(missing[:3])}): "
            "dump them with occ-dump, or leave them out with data.missing=skip"
        )
    return stored


def _add_teacher(subject: Subject, student: Opened, paths: Sequence[str], device: torch.device) -> None:
    """The stores that taught the student, where they hold what is scored; otherwise it is said why not."""
    assert isinstance(student, Checkpoint)
    if not student.facts["stores"]:
        print("the student was trained without a teacher: it is scored alone")
        return
    there = [TeacherStore(Path(path)) for path in paths if Path(path).exists()]
    if not there:
        print(f"no teacher store at {', '.join(paths) or '(none)'}: the student is scored alone")
        return
    taught = [StoreIdentity.from_dict(store) for store in student.facts["stores"]]
    stores = [store for store in there if store.identity in taught]
    for store in there:
        if store not in stores:
            print(_not_the_teacher(store, taught))
    if not stores:
        return
    teacher = StoreSource("teacher", stores, subject.grid, subject.classes, device)
    missing = len(teacher.missing(subject.keyframes.tokens))
    if missing:
        print(f"{teacher.path} lacks {missing} of {len(subject.keyframes)} keyframes: the student is scored alone")
        return
    subject.sources.insert(1, teacher)


def _not_the_teacher(store: TeacherStore, taught: list[StoreIdentity]) -> str:
    found, expected = _who(store.identity), ", ".join(map(_who, taught))
    if found in map(_who, taught):
        said = f"holds the teacher that taught this student ({found}) in other settings"
    else:
        said = f"holds another teacher ({found}) than the one that taught this student ({expected})"
    return (
        f"{store.path} {said}: it is not the teacher of this checkpoint; the student is scored alone; add it to "
        "sources=[...] to score it"
    )


def _who(identity: StoreIdentity) -> str:
    return f"{identity.teacher} {identity.checkpoint_sha256[:12]}".strip()
