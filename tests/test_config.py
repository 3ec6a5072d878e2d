"""Every option of every group composes, is what the schema wants, and what it describes can be built."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conf.schema import checked

CONF = Path(__file__).parent.parent / "conf"
SHIPPED = "pkg://teacher_dump/weights/fusion_demo.safetensors"
GIVEN = {
    "data": {"nuscenes": ["data.root=/d", f"data.fusion_checkpoint={SHIPPED}"]},
    "teacher": {
        "checkpoint": ["teacher.name=n", f"teacher.checkpoint={SHIPPED}"],
        "callable": ["teacher.name=n", "teacher._target_=types.SimpleNamespace"],
        **{file.stem: ["teacher.checkpoint=c.pth"] for file in CONF.glob("teacher/gaussianformer*.yaml")},
    },
}
# only with upstream's weights; the network in it is built nevertheless
UPSTREAM = "teacher_dump.teachers.gaussianformer.teacher.GaussianFormerTeacher"
PROGRAMS = {
    "dump": {"data", "grid", "teacher"},
    "train": {"data", "grid", "student", "kd", "trainer", "experiment"},
    "eval": {"data", "grid", "robustness", "tta"},
}
EVAL_ALONE = {("data", "checkpoint"), ("grid", "source")}


def options() -> list[tuple[str, str, str]]:
    return [
        (program, group, file.stem)
        for program, groups in PROGRAMS.items()
        for group in sorted(groups)
        for file in sorted((CONF / group).glob("*.yaml"))
        if program == "eval" or (group, file.stem) not in EVAL_ALONE
    ]


def build(node, key=""):
    """Everything that a configuration describes; networks without memory for their weights."""
    if isinstance(node, dict) and node.get("_target_", UPSTREAM) != UPSTREAM:
        arguments = {name: value for name, value in node.items() if (key, name) != ("teacher", "name")}
        with torch.device("meta") if key == "network" else nullcontext():
            instantiate(arguments)
    elif isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            build(child, name)


@pytest.mark.parametrize(("program", "group", "option"), options())
def test_every_option_composes_and_can_be_built(program, group, option):
    overrides = [f"{group}={option}", *GIVEN.get(group, {}).get(option, [])]
    if program == "train":
        overrides.append("student.network.encoder.weights=none")
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(program, overrides=overrides)
    config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert checked(program, config)[1] == []
    build(config)


def test_weights_that_nobody_ships_have_to_be_given():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["student=resnet50"])
    (problem,) = checked("train", OmegaConf.to_container(config, resolve=True))[1]
    assert problem.startswith("student.network.encoder.weights=null: must be given")


@pytest.mark.parametrize("kd", [file.stem for file in (CONF / "kd").glob("*.yaml")])
def test_losses_and_augmentation_can_be_built(kd):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=[f"kd={kd}"])
    instantiate(config.trainer.loss)
    instantiate(config.trainer.augmentation)
    if kd == "none":
        assert config.kd.loss is None
    else:
        loss = instantiate(config.kd.loss)
        assert (loss.voxel_weight > 0) == ("voxel" in kd)
        assert (loss.bev_weight > 0) == ("bev" in kd)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("grid", ["occ3d", "surroundocc"])
def test_the_grid_brings_its_classes(program, grid):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(program, overrides=[f"grid={grid}"])
    assert instantiate(config.grid).name == instantiate(config.classes).name == grid


def test_a_student_reads_by_default_what_its_teacher_writes_by_default_on_each_grid():
    paths = []
    for grid in ("occ3d", "surroundocc"):
        with initialize_config_module("conf", version_base="1.3"):
            written, read = (compose(program, overrides=[f"grid={grid}"]) for program in ("dump", "train"))
        assert read.store.paths == [written.store.path]
        paths.append(written.store.path)
    assert paths[0] != paths[1]


def test_eval_takes_everything_else_from_the_checkpoint():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("eval", overrides=["checkpoint=best.pt"])
    assert set(config.data.values()) - {config.cache_dir} == set(config.store.values()) == {None}


def test_runs_that_differ_have_folders_that_differ():
    with initialize_config_module("conf", version_base="1.3"):
        folders = {compose("train", overrides=[f"kd={kd}", "seed=3"]).output for kd in ("none", "voxel")}
    assert len(folders) == 2
