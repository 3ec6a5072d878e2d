"""The README's commands and code do what it says."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from workshop import Workshop

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (occ-.+)$", README, re.MULTILINE)
# what a user does not choose
HIDDEN = {"data": {"checkpoint", "demo_teacher"}, "store": {"checkpoint"}, "grid": {"source"}}
CONFIGS = {"occ-dump": "dump", "occ-train-student": "train", "occ-eval": "eval"}


def test_the_readme_shows_all_three_programs():
    assert {command.split()[0] for command in COMMANDS} == CONFIGS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command):
    """The values of every command exist; whole runs of all three programs are in test_programs.py."""
    program, *overrides = shlex.split(command)
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(CONFIGS[program], overrides)
    assert "seed" in OmegaConf.to_container(config, resolve=True)


def test_the_store_reads_as_shown(workshop: Workshop, monkeypatch):
    (block,) = [code for code in re.findall(r"```python\n(.+?)```", README, re.DOTALL) if "zarr" in code]
    monkeypatch.chdir(workshop.folder)
    names: dict = {}
    exec(block, names)
    logits = names["store"]["voxel_logits"][0]
    assert logits.shape == (200, 200, 16, 18)
    assert abs(float(np.exp(logits[0, 0, 0].astype("f4")).sum()) - 1) < 0.05


def test_the_documented_groups_exist():
    conf = Path(__file__).parent.parent / "conf"
    for group, cells in re.findall(r"^\| `(\w+)=` \| (.+) \|$", README, re.MULTILINE):
        documented = {name for name in re.findall(r"`(\w+)`", cells) if (conf / group / f"{name}.yaml").exists()}
        assert documented == {file.stem for file in (conf / group).glob("*.yaml")} - HIDDEN.get(group, set())
