"""What there is to learn from: counted, checked and said before the first step."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from distill import ranks
from distill.errors import InputError
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.inventory import SOURCES, Inventory, place_of_labels, settle_missing, summary, take_stock
from distill.nuscenes.labels import LabelSource
from distill.nuscenes.layout import LIDAR
from distill.store import TeacherStore
from student.stream import check_same_frames, find_store, not_compared, open_stores


def survey(config: DictConfig, output: Path) -> tuple[dict[str, Inventory], list[TeacherStore]]:
    """Splits "train" and "val", and the teachers; a summary is printed and written to `<output>/summary.txt`.

    Raises:
        InputError: files are missing, a store is of other frames, or there is nothing to learn from.
    """
    labels = open_labels(config.data, instantiate(config.grid))
    splits = take_splits(config, labels)
    depth = depth_stride(config) is not None and not config.student.inputs.lidar
    advice = "; LiDAR is for depth supervision alone: trainer.loss.depth_weight=0 trains without" if depth else ""
    settle_missing(splits, config.data.missing, output / "missing_files.txt", advice)
    train, val = splits.values()
    stores = open_stores(config, train.keyframes.tokens)
    check_same_frames(stores, train)
    taught = sum(find_store(stores, token) is not None for token in train.keyframes.tokens)
    if ranks.rank() == 0:
        told = summary(splits, labels, {"with a teacher": {"train": f"{taught} ({_speakers(stores)})"}})
        if not val.labelled:
            told += f"\nno validation keyframe has labels ({place_of_labels(val, labels)}): nothing will be scored"
        told = "\n".join([told, *not_compared(stores)])
        print(told, flush=True)
        (output / "summary.txt").write_text(f"{told}\n")
    check_something_to_learn(train, taught, config, labels)
    return splits, stores


def take_splits(config: DictConfig, labels: LabelSource) -> dict[str, Inventory]:
    """Inventories of "train" and "val"."""
    index, free = open_dataroot(config.data), instantiate(config.classes).free
    lidar = config.student.inputs.lidar
    train = index.keyframes(config.data.train_split)[: config.trainer.max_samples]
    val = index.keyframes(config.data.val_split)[: config.trainer.max_val_samples]
    return {
        "train": take_stock(train, labels, free, cameras=True, lidar=lidar or depth_stride(config) is not None),
        "val": take_stock(val, labels, free, cameras=True, lidar=lidar),
    }


def check_something_to_learn(train: Inventory, taught: int, config: DictConfig, labels: LabelSource) -> None:
    """Raise InputError unless some keyframe teaches something."""
    if not train.keyframes:
        raise InputError(f"split {config.data.train_split} has no keyframe that is whole: there is nothing to train on")
    if not train.labelled and not taught:
        raise InputError(
            f"none of the {len(train.keyframes)} training keyframes has labels ({place_of_labels(train, labels)}), and "
            f"none a teacher (kd={config.kd.name}): there is nothing to learn; put the labels there, or dump a teacher"
        )
    if config.kd.loss is not None and not taught:
        raise InputError(
            f"none of the {len(train.keyframes)} training keyframes has a teacher in {', '.join(config.store.paths)}: "
            f"kd={config.kd.name} would learn what kd=none does; dump them with occ-dump, or set kd=none"
        )
    if train.labelled and not taught and not train.masks[:, 0].any() and config.trainer.loss.get("mask") == "camera":
        raise InputError(
            f"mask_camera is empty in all {len(train.masks)} label files looked at: there is nothing to learn; "
            "get the labels again, or set trainer.loss.mask=all"
        )


def depth_stride(config: DictConfig) -> int | None:
    """Of the depth maps that supervise the lift; None where no loss asks for them."""
    return None if config.trainer.loss.get("depth_weight") == 0 else config.student.inputs.depth_stride


def sources_of(config: DictConfig) -> list[str]:
    """What the numbers of a run depend on; names of `SOURCES`."""
    scans = config.student.inputs.lidar or depth_stride(config) is not None
    return [source for source in SOURCES if scans or source != LIDAR]


def _speakers(stores: list[TeacherStore]) -> str:
    names = [f"{store.identity.teacher} {store.identity.checkpoint_sha256[:8]}".strip() for store in stores]
    return ", ".join(names) or "kd=none"
