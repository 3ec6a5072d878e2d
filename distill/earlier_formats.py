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
    """Format 3: classes have moved, a fusion network says the widths of its own parts.

    Losses are terms of an objective, and stores are those of a teacher.
    """
    config = content["config"]
    terms = [name for name, term in _distilled(config["kd"]["loss"]).items() if term["weight"]]
    stored = {"weight": 1.0, "stores": content["stores"], "paths": config["store"]["paths"], "terms": terms}
    today = {key: value for key, value in content.items() if key != "stores"} | {
        "config": _config(_said_today(config)),
        "teachers": {"stored": stored} if content["stores"] else {},
        "objective": {},
    }
    if "sums" in content:
        today["sums"] = content["sums"] | _raw(content["sums"], today["config"])
    return today


def _config(config: dict[str, Any]) -> dict[str, Any]:
    supervised, distilled, store = config["trainer"].pop("loss"), config["kd"].pop("loss"), config.pop("store")
    inputs = config["student"]["inputs"]
    inputs.pop("depth_stride")
    inputs["history"] = 0
    config["data"].pop("fusion_checkpoint", None)
    config["data"]["labels"] = None
    config["trainer"]["gradient_norms_every"] = None
    config["kd"]["terms"] = _distilled(distilled)
    if distilled is not None:
        config["kd"] |= {key: distilled[key] for key in ("temperature", "mask")}
    config["objective"] = {"mask": supervised["mask"], "terms": _supervised(supervised)}
    stored = {
        "_target_": "distill.teaching.stored.open_stored",
        "paths": store["paths"],
        "folder": "stores",
        "missing": store["missing"],
        "signals": ["gaussians"] if store.get("render") else None,
        "weight": 1.0,
    }
    return config | {"teachers": {"stored": stored}}


def _supervised(loss: dict[str, Any]) -> dict[str, dict[str, Any]]:
    at, classes = "distill.losses.supervised.", loss["classes"]
    balance = loss.get("balance", "log")  # the only one at first
    ce = {"_target_": f"{at}CrossEntropy", "weight": loss["ce_weight"], "balance": balance}
    lovasz = {"_target_": f"{at}LovaszSoftmax", "weight": loss["lovasz_weight"]}
    where = {"mask": loss["mask"], "classes": classes}
    return {
        "ce": ce | where,
        "lovasz": lovasz | where,
        "depth": {"_target_": f"{at}LidarDepth", "weight": loss["depth_weight"]},
    }


def _distilled(loss: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    if loss is None:
        return {}
    at, shared = "distill.losses.logits.", {key: loss[key] for key in ("temperature", "mask", "classes")}
    shared |= {"confidence": "none", "unlabelled": "all"}
    return {
        name: {"_target_": at + kind, "weight": loss[weight], "teachers": None, **shared}
        for name, kind, weight in (("kd_voxel", "VoxelKL", "voxel_weight"), ("kd_bev", "BevKL", "bev_weight"))
    }


def _raw(sums: dict[str, float], config: dict[str, Any]) -> dict[str, float]:
    """The terms as they are, which format 2 knew weighted alone."""
    terms = {**config["objective"]["terms"], **config["kd"]["terms"]}
    return {f"{name}_raw": sums[name] / term["weight"] for name, term in terms.items() if name in sums}


def _said_today(node: Any) -> Any:
    if isinstance(node, list):
        return [_said_today(child) for child in node]
    if not isinstance(node, dict):
        return node
    today: dict[str, Any] = {
        key: _MOVED.get(child, child) if key == "_target_" else _said_today(child) for key, child in node.items()
    }
    if today.get("_target_") == "distill.networks.fusion.FusionNetwork":
        today |= {part: _without_width(today[part]) for part in ("bev_encoder", "head")}
    return today


def _without_width(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "in_channels"} | {"_partial_": True}
