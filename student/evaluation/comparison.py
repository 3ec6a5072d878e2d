"""What is scored on what: sources side by side, and the labelled keyframes they are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from distill import ranks
from distill.checkpoint import Checkpoint
from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES, ClassSet
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.networks.published import Published
from distill.nuscenes.dataroot import open_dataroot, open_labels, source_of
from distill.nuscenes.index import KeyframeIndex, Keyframes
from distill.nuscenes.inventory import Inventory, place_of_labels, settle_missing, summary, take_stock
from distill.nuscenes.labels import LabelSource
from distill.teaching.labels import TeacherLabels
from student.evaluation.predictions import PredictionsFolder
from student.evaluation.request import Opened, cache_of
from student.evaluation.sources import (
    CheckpointSource,
    NetworkSource,
    OnnxSource,
    PredictionsSource,
    Source,
    StoreSource,
)
from student.evaluation.teacher import find_teacher
from student.export.runtime import OnnxFile

_CLASSES = {OCC3D: OCC3D_CLASSES, SURROUNDOCC: SURROUNDOCC_CLASSES}


@dataclass(frozen=True)
class Comparison:
    """Sources that are scored side by side.

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
    index: KeyframeIndex
    grid: VoxelGrid
    classes: ClassSet
    labels: LabelSource
    keyframes: Keyframes
    labelled: Keyframes
    unlabelled: int
    told: str
    sources: list[Source]


def open_comparison(
    config: DictConfig, opened: dict[str, Opened], settings: DictConfig, device: torch.device, output: Path
) -> Comparison:
    """Open everything, and refuse what cannot be scored before anything is.

    Args:
        config: of conf/eval.yaml.
        opened: see `student.evaluation.request.open_files`.
        settings: see `student.evaluation.request.settings_of`.
        device: for networks.
        output: where the list of bad predictions is written.

    Raises:
        InputError: a source is on another grid or incomplete, or no keyframe has labels.
    """
    grid, classes = _grid(settings, opened)
    index, labels = open_dataroot(settings.data), open_labels(settings.data, grid)
    stock = _take_stock(config, opened, settings, index, labels, output)
    labelled = stock.keyframes.where([token in stock.labelled for token in stock.keyframes.tokens])
    if config.export is None and not labelled:
        raise InputError(_without_labels(stock, labels, settings))
    comparison = Comparison(
        data=settings.data,
        split=settings.split,
        index=index,
        grid=grid,
        classes=classes,
        labels=labels,
        keyframes=labelled if config.export is None else stock.keyframes,
        labelled=labelled,
        unlabelled=len(stock.keyframes) - len(labelled),
        told=_told(settings.split, stock, labels),
        sources=[],
    )
    sources = _open_sources(config, opened, settings, comparison, device, output)
    for source in sources:
        if isinstance(source, StoreSource):
            _say_other_frames(source, stock)
    if config.export is not None:
        check_export(Path(config.export), sources, comparison.keyframes.tokens)
    return replace(comparison, sources=sources)


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


def _grid(settings: DictConfig, opened: dict[str, Opened]) -> tuple[VoxelGrid, ClassSet]:
    if settings.get("grid") is not None:
        return instantiate(settings.grid), instantiate(settings.classes)
    stores = [source[0] for source in opened.values() if isinstance(source, list)]
    grid = stores[0].grid if stores else OCC3D
    if grid not in _CLASSES:
        raise InputError(f"{stores[0].path} is on grid {grid.name}, which has no labels: give grid=")
    return grid, _CLASSES[grid]


def _take_stock(
    config: DictConfig,
    opened: dict[str, Opened],
    settings: DictConfig,
    index: KeyframeIndex,
    labels: LabelSource,
    output: Path,
) -> Inventory:
    """The keyframes of the split whose files are there, as far as networks and pictures need them."""
    networks = [source for source in opened.values() if isinstance(source, Checkpoint | Published | OnnxFile)]
    stock = take_stock(
        index.keyframes(settings.split)[: config.max_samples],
        labels,
        _CLASSES[labels.grid].free,
        cameras=bool(networks or config.pictures),
        lidar=any(network.config["student"]["inputs"]["lidar"] for network in networks),
        history=max((network.config["student"]["inputs"].get("history", 0) for network in networks), default=0),
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
            held = [any(token in store.present for store in stores) for token in stock.keyframes.tokens]
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
    for line in source.teacher.remarks():
        print(line, flush=True)
    if different:
        token, sources = next(iter(different.items()))
        print(
            f"{source.path}: {len(different)} of {len(stock.keyframes)} keyframes were dumped from other files than "
            f"those of {stock.keyframes.root} (first {token}: {', '.join(sources)}): it is scored by what it saw then"
        )


def _told(split: str, stock: Inventory, labels: LabelSource) -> str:
    """What there is, in a table, and what is unusual about the labels and the rays."""
    told = [summary({split: stock}, labels, {})]
    if isinstance(labels, TeacherLabels):
        told.append(f"scored against what teacher {labels.teacher} says ({labels.store.path}), not against labels")
    if stock.keyframes and stock.keyframes[0].lidar2ego is None:
        told.append("the data have no LiDAR: the rays of RayIoU begin amidst the cameras")
    return "\n".join(told)


def _without_labels(stock: Inventory, labels: LabelSource, settings: DictConfig) -> str:
    return (
        f"none of the {len(stock.keyframes)} keyframes of {source_of(settings.data)}, split {settings.split}, has "
        f"labels on grid {labels.grid.name} ({place_of_labels(stock, labels)}): there is nothing to score against; "
        "export= writes predictions without scoring"
    )


def _open_sources(
    config: DictConfig,
    opened: dict[str, Opened],
    settings: DictConfig,
    comparison: Comparison,
    device: torch.device,
    output: Path,
) -> list[Source]:
    """What is given, and behind a student the teacher that taught it, where it is there."""
    views = instantiate(config.tta, _convert_="all")["views"]
    sources = [_source(name, source, comparison, views, device, output) for name, source in opened.items()]
    student = opened.get("student") if config.checkpoint is not None else None
    if isinstance(student, Checkpoint):
        teacher = find_teacher(
            student,
            _stores(student, settings),
            comparison.keyframes.tokens,
            comparison.grid,
            comparison.classes,
            device,
            cache_of(config),
        )
        sources[1:1] = [] if teacher is None else [teacher]
    return sources


def _stores(student: Checkpoint, settings: DictConfig) -> list[str]:
    """Where the stores of the student's teachers are: as given, none too, or where they were when it was trained."""
    paths: list[str] = []
    for name, facts in student.facts["teachers"].items():
        given = OmegaConf.select(settings, f"teachers.{name}.paths")
        paths += facts.get("paths", ()) if given is None else given
    return paths


def _source(
    name: str, opened: Opened, comparison: Comparison, views: list[Any], device: torch.device, output: Path
) -> Source:
    if isinstance(opened, PredictionsFolder):
        offenders = output / "bad_predictions.csv"
        others = opened.check(
            comparison.keyframes, comparison.index.tokens, comparison.labels, comparison.classes, offenders
        )
        return PredictionsSource(name, opened, others)
    if isinstance(opened, Checkpoint | Published | OnnxFile):
        network: NetworkSource
        if isinstance(opened, Checkpoint):
            network = CheckpointSource(name, opened, views, device)
        elif isinstance(opened, OnnxFile):
            network = OnnxSource(name, opened, views, device)
        else:
            network = NetworkSource(name, opened, opened.network(), views, device)
        if network.grid != comparison.grid:
            raise InputError(
                f"{network.path} is on grid {network.grid.name}, this evaluation on {comparison.grid.name}: "
                "give sources of one grid"
            )
        return network
    stored = StoreSource(name, opened, comparison.grid, comparison.classes, device)
    missing = stored.missing(comparison.keyframes.tokens)
    if missing:
        raise InputError(
            f"{stored.path} lacks {len(missing)} of {len(comparison.keyframes)} keyframes ({', '.join(missing[:3])}): "
            "dump them with occ-dump, or leave them out with data.missing=skip"
        )
    return stored
