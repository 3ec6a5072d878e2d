"""The README's commands and code do what it says."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from workshop import BIN, Workshop

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (occ-.+)$", README, re.MULTILINE)


def test_the_readme_shows_all_three_programs():
    assert {command.split()[0] for command in COMMANDS} == {"occ-dump", "occ-train-student", "occ-eval"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(tmp_path, command):
    """The values of every command exist; whole runs of all three programs are in test_programs.py."""
    program, *overrides = shlex.split(command)
    shown = subprocess.run(
        [BIN / program, *overrides, "--cfg", "job", "--resolve"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("seed:")


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
        hidden = {"checkpoint"} if group in ("data", "store") else set()
        hidden |= {"demo_teacher"} if group == "data" else set()
        assert documented == {file.stem for file in (conf / group).glob("*.yaml")} - hidden
