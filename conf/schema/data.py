"""What the values of data may be: the demo world, grids, keyframes, augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from conf.schema.values import (
    Built,
    Count,
    Known,
    Labels,
    Name,
    Node,
    Number,
    Place,
    Positive,
    Probability,
    Seed,
    Size,
    Split,
    Text,
)


class World(Known):
    """`distill.demo.WorldConfig`."""

    seed: Seed
    train_scenes: Count
    val_scenes: Count
    keyframes_per_scene: Count
    image_size: Size
    jpeg_quality: Annotated[int, Field(ge=1, le=95)]


class Grid(Known):
    """`distill.grids.named_grid`."""

    name: Literal["occ3d", "surroundocc"]


Layout = Literal["nuscenes", "challenge", "rig"]
LidarColumns = Annotated[int, Field(ge=4, le=64)]
_NEEDED = {"nuscenes": ("root", "version", "lidar_columns"), "challenge": ("root", "image_size"), "rig": ("index",)}


class Data(Node):
    """Where the keyframes are, and what to do about those that are not whole."""

    name: Name
    layout: Layout
    root: Place | None
    version: Name | None
    index: Place | None
    image_size: Size | None
    surroundocc: Text | None
    labels: Labels
    labels_folder: Text | None
    train_split: Split
    val_split: Split
    missing: Literal["error", "skip"]
    lidar_columns: LidarColumns | None
    cache_dir: Place
    world: Built | None

    @model_validator(mode="after")
    def _describes_keyframes(self) -> Data:
        for key in _NEEDED[self.layout]:
            if getattr(self, key) is None:
                raise ValueError(f"{key} should not be null with layout={self.layout}")
        return self


class DataOfCheckpoint(Node):
    """`Data`; null stands for what the checkpoint says."""

    name: Name | None
    layout: Layout | None
    root: Place | None
    version: Name | None
    index: Place | None
    image_size: Size | None
    surroundocc: Text | None
    labels: Labels
    labels_folder: Text | None
    train_split: Split | None
    val_split: Split | None
    missing: Literal["error", "skip"] | None
    lidar_columns: LidarColumns | None
    cache_dir: Place
    world: Built | None


class Augmentation(Known):
    """`distill.augment.Augmentation`."""

    resize: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    image_flip: Probability
    rotation: Annotated[Number, Field(ge=0, lt=90)]
    colour: Annotated[Number, Field(ge=0, lt=1)]
    bev_flip: Probability


BUILT: dict[str, type[Known]] = {
    "distill.demo.WorldConfig": World,
    "distill.grids.named_grid": Grid,
    "distill.augment.Augmentation": Augmentation,
}
