"""Every option of every group composes, and what it describes can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parent.parent / "conf"
GIVEN = {
    "data": {"nuscenes": ["data.root=/d", "data.fusion_checkpoint=f.pt"]},
    "student": {"resnet50": ["student.network.encoder.weights=none"]},
    "teacher": {
        "checkpoint": ["teacher.name=n", "teacher.checkpoint=c.pt"],
        "callable": ["teacher.name=n", "teacher._target_=t"],
        **{file.stem: ["teacher.checkpoint=c.pth"] for file in CONF.glob("teacher/gaussianformer*.yaml")},
    },
}
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


@pytest.mark.parametrize(("program", "group", "option"), options())
def test_every_option_composes_and_resolves(program, group, option):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(program, overrides=[f"{group}={option}", *GIVEN.get(group, {}).get(option, [])])
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


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
    assert set(config.data.values()) == set(config.store.values()) == {None}


def test_runs_that_differ_have_folders_that_differ():
    with initialize_config_module("conf", version_base="1.3"):
        folders = {compose("train", overrides=[f"kd={kd}", "seed=3"]).output for kd in ("none", "voxel")}
    assert len(folders) == 2
