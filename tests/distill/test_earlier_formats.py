"""Checkpoints of formats 1 and 2, written by hand as they were, are read in today's words."""

import copy
import json

import pytest
import torch
from hydra.utils import instantiate
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from distill.checkpoint import export, load_checkpoint, load_training_state
from distill.errors import InputError

AT = "distill.losses."
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}
CLASSES = {"_target_": "hydra.utils.get_object", "path": "distill.classes.OCC3D_CLASSES"}
GRID = {"_target_": "distill.grids.named_grid", "name": "occ3d"}
STORE = {"teacher": "t", "checkpoint_sha256": "5a", "render": False}
# what a student that learnt from a store said of itself in format 2
CONFIG_2 = {
    "seed": 0,
    "classes": CLASSES,
    "grid": GRID,
    "data": {
        **{"name": "demo", "train_split": "train", "val_split": "val", "missing": "error", "lidar_columns": 4},
        "fusion_checkpoint": "pkg://teacher_dump/weights/fusion_demo.safetensors",
        "world": {"_target_": "distill.nuscenes.world.WorldConfig", "seed": 0},
    },
    "student": {"inputs": {"image_size": [8, 16], "depth_stride": 8, "lidar": False}, "network": LINEAR},
    "kd": {
        "name": "voxel_bev",
        "loss": {
            "_target_": "distill.losses.Distillation",
            **{"voxel_weight": 1.0, "bev_weight": 0.5, "temperature": 2.0, "mask": "occupied"},
            "grid": GRID,
            "classes": CLASSES,
        },
    },
    "store": {"paths": ["stores/a.zarr"], "missing": "skip", "render": False},
    "trainer": {
        "epochs": 5,
        "loss": {
            "_target_": "distill.losses.Supervision",
            **{"ce_weight": 1.0, "lovasz_weight": 2.0, "depth_weight": 0.25, "balance": "sqrt", "mask": "camera"},
            "classes": CLASSES,
        },
    },
}
CONFIG_3 = {
    "seed": 0,
    "classes": CLASSES,
    "grid": GRID,
    "data": {
        **{"name": "demo", "train_split": "train", "val_split": "val", "missing": "error", "lidar_columns": 4},
        "world": {"_target_": "distill.demo.WorldConfig", "seed": 0},
        "labels": None,
    },
    "student": {"inputs": {"image_size": [8, 16], "lidar": False, "history": 0}, "network": LINEAR},
    "objective": {
        "mask": "camera",
        "terms": {
            "ce": {
                "_target_": f"{AT}supervised.CrossEntropy",
                **{"weight": 1.0, "balance": "sqrt", "mask": "camera", "classes": CLASSES},
            },
            "lovasz": {
                "_target_": f"{AT}supervised.LovaszSoftmax",
                **{"weight": 2.0, "mask": "camera", "classes": CLASSES},
            },
            "depth": {"_target_": f"{AT}supervised.LidarDepth", "weight": 0.25},
        },
    },
    "kd": {
        "name": "voxel_bev",
        **{"temperature": 2.0, "mask": "occupied"},
        "terms": {
            "kd_voxel": {
                "_target_": f"{AT}logits.VoxelKL",
                **{"weight": 1.0, "teachers": None, "temperature": 2.0, "mask": "occupied", "classes": CLASSES},
                **{"confidence": "none", "unlabelled": "all"},
            },
            "kd_bev": {
                "_target_": f"{AT}logits.BevKL",
                **{"weight": 0.5, "teachers": None, "temperature": 2.0, "mask": "occupied", "classes": CLASSES},
                **{"confidence": "none", "unlabelled": "all"},
            },
        },
    },
    "teachers": {
        "stored": {
            "_target_": "distill.teaching.stored.open_stored",
            **{"paths": ["stores/a.zarr"], "folder": "stores", "missing": "skip", "signals": None, "weight": 1.0},
        }
    },
    "trainer": {"epochs": 5, "gradient_norms_every": None},
}
SINCE_2 = {
    **{"epoch": 3, "step": 60, "code": "0.1.0 abc", "scores": {"val_miou": 1.5}},
    **{"data": {"train": "1f"}, "files": {"trainer.init": "2e"}},
}
FACTS = {**SINCE_2, "stores": [STORE]}


def write(file, number, config, lacks=(), **facts):
    """Write a checkpoint of an earlier format; returns the weights in it."""
    state = nn.Linear(3, 2).state_dict()
    said = f"occ-distill checkpoint {number}"
    content = {key: value for key, value in {**FACTS, "config": config, **facts}.items() if key not in lacks}
    if file.suffix == ".pt":
        training = {"network": state, "ema": state, "optimizer": {}, "sums": {}}
        torch.save({"format": said, **training, **content}, file)
    else:
        save_file(state, file, {"format": said, "facts": json.dumps(content)})
    return state


@pytest.fixture(params=["pt", "safetensors"])
def old(request, tmp_path):
    return tmp_path / f"old.{request.param}"


def test_format_2_is_said_in_todays_words(old, tmp_path):
    state = write(old, 2, CONFIG_2)
    loaded = load_checkpoint(str(old), "ema")
    assert loaded.config == CONFIG_3
    taught = {"weight": 1.0, "stores": [STORE], "paths": ["stores/a.zarr"], "terms": ["kd_voxel", "kd_bev"]}
    assert loaded.facts == {**SINCE_2, "teachers": {"stored": taught}}
    assert torch.equal(loaded.network().weight, state["weight"])
    for term in [*loaded.config["objective"]["terms"].values(), *loaded.config["kd"]["terms"].values()]:
        assert instantiate(term).weight == term["weight"]
    export(loaded, tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", "pt") as content:
        assert content.metadata()["format"] == "occ-distill checkpoint 3"
    again = load_checkpoint(str(tmp_path / "new.safetensors"), "ema")
    assert (again.config, again.facts) == (loaded.config, loaded.facts)


def test_format_1_meant_what_format_2_says(old):
    """One way to split and to read data, no note of what was in them, one balance of classes, no rendered voxels."""
    data = {key: CONFIG_2["data"][key] for key in ("name", "world")} | {"lidar_columns": 4}
    loss = {key: value for key, value in CONFIG_2["trainer"]["loss"].items() if key != "balance"}
    store = {key: value for key, value in CONFIG_2["store"].items() if key != "render"}
    config = {**CONFIG_2, "data": data, "trainer": {"epochs": 5, "loss": loss}, "store": store}
    write(old, 1, config, lacks=("data", "files"))
    loaded = load_checkpoint(str(old), "ema")
    expected = copy.deepcopy(CONFIG_3)
    expected["objective"]["terms"]["ce"]["balance"] = "log"
    assert loaded.config == expected
    assert (loaded.facts["data"], loaded.facts["files"]) == ({}, {})


def test_a_run_without_a_teacher_had_none_in_format_2(old):
    write(old, 2, {**CONFIG_2, "kd": {"name": "none", "loss": None}}, stores=[])
    loaded = load_checkpoint(str(old), "ema")
    assert loaded.facts["teachers"] == {}
    assert loaded.config["kd"] == {"name": "none", "terms": {}}
    assert loaded.config["teachers"] == CONFIG_3["teachers"]


def test_voxels_rendered_from_gaussians_are_a_signal_that_may_answer(old):
    write(old, 2, {**CONFIG_2, "store": {**CONFIG_2["store"], "render": True}})
    assert load_checkpoint(str(old), "ema").config["teachers"]["stored"]["signals"] == ["gaussians"]


def test_terms_of_weight_0_did_not_listen_in_format_2(old):
    loss = {**CONFIG_2["kd"]["loss"], "voxel_weight": 0.0}
    write(old, 2, {**CONFIG_2, "kd": {"name": "bev", "loss": loss}})
    loaded = load_checkpoint(str(old), "ema")
    assert loaded.facts["teachers"]["stored"]["terms"] == ["kd_bev"]
    assert loaded.config["kd"]["terms"]["kd_voxel"]["weight"] == 0.0


def test_training_goes_on_from_format_2(tmp_path):
    """The objective had no weights, and sums of terms were weighted alone."""
    file = tmp_path / "last.pt"
    write(file, 2, CONFIG_2, sums={"steps": 2, "ce": 0.5, "depth": 0.5, "kd_bev": 0.25, "loss": 1.25})
    content = load_training_state(file)
    assert content["objective"] == {}
    assert "stores" not in content
    raw = {"ce_raw": 0.5, "depth_raw": 2.0, "kd_bev_raw": 0.5}
    assert content["sums"] == {"steps": 2, "ce": 0.5, "depth": 0.5, "kd_bev": 0.25, "loss": 1.25, **raw}


def test_networks_of_format_2_are_found_where_they_are_now(tmp_path):
    """A fusion network says the widths of its own parts now."""
    fusion = {
        "_target_": "teacher_dump.teachers.fusion.FusionNetwork",
        "encoder": {"_target_": "distill.network.encoder.ImageEncoder", "weights": "wheel"},
        "point_encoder": {"_target_": "teacher_dump.teachers.fusion.PointEncoder"},
        "bev_encoder": {"_target_": "distill.network.bev_encoder.BEVEncoder", "in_channels": 80, "widths": [8]},
        "head": {"_target_": "distill.network.head.ChannelToHeight", "in_channels": 64, "bev_stride": 1},
    }
    camera = {
        "_target_": "student.network.occupancy.OccupancyNetwork",
        "lift": {"_target_": "student.network.lift.LiftSplat", "in_channels": 96},
        "bev_encoder": {"_target_": "distill.network.bev_encoder.BEVEncoder", "in_channels": 128},
    }
    found = []
    for described in (fusion, camera):
        write(tmp_path / "old.pt", 2, {**CONFIG_2, "student": {**CONFIG_2["student"], "network": described}})
        found.append(load_checkpoint(str(tmp_path / "old.pt"), "ema").config["student"]["network"])
    at = "distill.networks."
    assert found[0] == {
        "_target_": f"{at}fusion.FusionNetwork",
        "encoder": {"_target_": f"{at}blocks.encoder.ImageEncoder", "weights": "wheel"},
        "point_encoder": {"_target_": f"{at}fusion.PointEncoder"},
        "bev_encoder": {"_target_": f"{at}blocks.bev_encoder.BEVEncoder", "widths": [8], "_partial_": True},
        "head": {"_target_": f"{at}blocks.head.ChannelToHeight", "bev_stride": 1, "_partial_": True},
    }
    assert found[1] == {
        "_target_": f"{at}camera.CameraNetwork",
        "lift": {"_target_": f"{at}lift.LiftSplat", "in_channels": 96},
        "bev_encoder": {"_target_": f"{at}blocks.bev_encoder.BEVEncoder", "in_channels": 128},
    }


@pytest.mark.parametrize(("number", "lacks"), [(1, "config"), (1, "stores"), (2, "config"), (2, "stores"), (2, "code")])
def test_an_earlier_checkpoint_that_was_stripped_says_what_it_lacks(old, number, lacks):
    write(old, number, CONFIG_2, lacks=(lacks,))
    with pytest.raises(InputError, match=rf"without its {lacks}: give the best\.pt"):
        load_checkpoint(str(old), "ema")


@pytest.mark.parametrize("package", ["student/weights/demo_student", "teacher_dump/weights/fusion_demo"])
def test_the_shipped_weights_are_read(package):
    shipped = load_checkpoint(f"pkg://{package}.safetensors", "ema")
    assert shipped.config["data"]["val_split"] == "val"
    assert shipped.config["data"]["lidar_columns"] == 5
    assert shipped.facts["teachers"] == {}
    assert sum(parameter.numel() for parameter in shipped.network().parameters()) > 1e6
