"""Checkpoints of earlier formats, said in the words of today's."""

from __future__ import annotations

from typing import Any

# where classes that a configuration names have gone
_MOVED = {
    "distill.nuscenes.world.WorldConfig": "distill.demo.WorldConfig",
    "distill.network.encoder.ImageEncoder": "distill.networks.blocks.encoder.ImageEncoder",
    "distill.network.bev_encoder.BEVEncoder": "distill.networks.blocks.bev_encoder.BEVEncoder",
    "distill.network.head.ChannelToHeight": "distill.networks.blocks.head.ChannelToHeight",
    "student.network.lift.LiftSplat": "distill.networks.lift.LiftSplat",
    "student.network.occupancy.OccupancyNetwork": "distill.networks.camera.CameraNetwork",
    "teacher_dump.teachers.fusion.FusionNetwork": "distill.networks.fusion.FusionNetwork",
    "teacher_dump.teachers.fusion.PointEncoder": "distill.networks.fusion.PointEncoder",
}


def from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Format 2: format 1 knew one way to split and to read data, and did not note what was in them."""
    meant = {"train_split": "train", "val_split": "val", "missing": "error", "lidar_columns": 5}
    config = content["config"]
    return {"data": {}, "files": {}, **content, "config": {**config, "data": {**meant, **config["data"]}}}


def from_format_2(content: dict[str, Any]) -> dict[str, Any]:
    """Format 3."""
    return {**content, "config": _moved(content["config"])}


def _moved(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _MOVED.get(child, child) if key == "_target_" else _moved(child) for key, child in node.items()}
    return [_moved(child) for child in node] if isinstance(node, list) else node
