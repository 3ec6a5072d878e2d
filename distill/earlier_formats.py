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
    """Format 3: classes have moved, and a fusion network says the widths of its own parts."""
    return {**content, "config": _said_today(content["config"])}


def _said_today(node: Any) -> Any:
    if isinstance(node, list):
        return [_said_today(child) for child in node]
    if not isinstance(node, dict):
        return node
    today = {key: _MOVED.get(child, child) if key == "_target_" else _said_today(child) for key, child in node.items()}
    if today.get("_target_") == "distill.networks.fusion.FusionNetwork":
        today |= {part: _without_width(today[part]) for part in ("bev_encoder", "head")}
    return today


def _without_width(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "in_channels"} | {"_partial_": True}
