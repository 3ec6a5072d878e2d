"""The commands, values and code in README and docs do what they say."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zarr
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from workshop import BIN, SMALL_STUDENT, SMALL_WORLD, Workshop

from conf.renamed import renamed
from conf.schema import checked
from distill.demo import WorldConfig, ensure_world
from distill.nuscenes.index import load_index
from distill.store import TeacherStore
from distill.store.packing import Packing

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
README = (ROOT / "README.md").read_text()
GUIDE, STORE, METRICS, OWN_DATA = (
    ROOT.joinpath("docs", f"{name}.md").read_text() for name in ("guide", "store", "metrics", "own_data")
)
TEXTS = [README, *(file.read_text() for file in sorted(ROOT.glob("docs/*.md")))]
COMMANDS = list(dict.fromkeys(re.findall(r"^\$ (occ-.+)$", "\n".join(TEXTS), re.MULTILINE)))
MARKED = re.compile(r"<!-- run by tests/test_readme\.py -->\n```console\n(.+?)```", re.DOTALL)
ACTIVATE = "source .venv/bin/activate"
GROUPS = {folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml"))} - {"teacher_on_data"}
# what a user does not choose
HIDDEN = {
    "data": {"checkpoint", "demo_teacher"},
    "teachers": {"checkpoint"},
    "grid": {"source"},
}
CONFIGS = {
    "occ-dump": "dump",
    "occ-train-student": "train",
    "occ-eval": "eval",
    "occ-pool-labels": "pool_labels",
    "occ-store": "stores",
    "occ-export": "export",
}


def composed(command: str) -> DictConfig:
    """The configuration of a command line."""
    program, *overrides = shlex.split(command)
    with initialize_config_module("conf", version_base="1.3"):
        return compose(CONFIGS[program], overrides)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_right(command):
    """The values of every command exist, are what they may be, and have today's names."""
    program, *overrides = shlex.split(command)
    assert renamed(CONFIGS[program], overrides) == (overrides, [])
    config = OmegaConf.to_container(composed(command), resolve=True)
    assert checked(CONFIGS[program], config)[1] == []


def test_marked_commands_run(tmp_path):
    """A reader's shell, which knows none of our programs until .venv is activated, goes through README and guide.

    What a reader does not add makes it quick: the world and the student are small, and little is scored.
    """
    commands = [*marked(README), *marked(GUIDE)]
    assert commands[0] == ACTIVATE
    assert {command.split()[0] for command in commands[1:]} == CONFIGS.keys()
    ended = run_in_a_shell(tmp_path, commands)
    assert (tmp_path / "predictions/demo-fusion-occ3d").is_dir()
    assert "mIoU: no difference that 1 keyframes can show" in ended.stdout
    assert "not trained alike" not in ended.stdout


def test_the_walk_through_of_ones_own_data_runs(workshop: Workshop, tmp_path):
    """Five cameras, no LiDAR, no labels, from an index to a report; the world is there already."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo").symlink_to(workshop.folder / "data/demo")
    ended = run_in_a_shell(tmp_path, [ACTIVATE, *marked(OWN_DATA)])
    assert "cameras: front_left, front, front_right, back_left, back_right" in ended.stdout
    assert "none of them has a label to judge the teacher by" in ended.stdout
    assert re.search(r"scored against what teacher six_cameras \w{8} says .*, not against labels", ended.stdout)
    assert "the rays of RayIoU begin amidst the cameras" in ended.stdout
    assert len(list((tmp_path / "predictions/student").glob("*.npz"))) == 1
    assert not (tmp_path / "runs/rig/five/best.pt").exists()


def marked(text: str) -> list[str]:
    """The commands of a text that are to be run."""
    lines = [line for block in MARKED.findall(text) for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def run_in_a_shell(folder: Path, commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder, with what makes them quick, and expect no fault."""
    if not (BIN / "activate").exists():
        pytest.skip("these tests run in no virtual environment")
    quick = [shlex.join(quickly(command)) if command.startswith("occ-") else command for command in commands]
    (folder / ".venv").symlink_to(sys.prefix)
    shell = [shutil.which("bash"), "--norc", "-ec", "\n".join(quick)]
    path = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(shell, cwd=folder, env=path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended


def quickly(command: str) -> list[str]:
    """The words of a command line, and what makes it quick."""
    given = shlex.split(command)
    own = "data=rig" in given
    # labels of three of four scenes can be withheld
    world = [] if own else [*SMALL_WORLD, "data.world.train_scenes=4"]
    if given[0] == "occ-dump":
        return [*given, *world, "gate.min_miou=1"]
    if given[0] == "occ-pool-labels":
        return [*given, *world]
    if given[0] in ("occ-store", "occ-export"):
        return given
    if given[0] == "occ-train-student":
        said = ("experiment=", "teachers.") if own else ("experiment=",)
        small = [override for override in SMALL_STUDENT if not override.startswith(said)]
        return [*given, *world, *small, "trainer.batch_size=2", f"output={composed(command).output}"]
    return [*given, "cost.warmup=0", "cost.runs=1", "max_samples=1", "pictures=[]"]


def test_a_demo_world_says_where_it_is_made(tmp_path, monkeypatch, capsys):
    """Who starts a program in another folder sees why it begins with that."""
    monkeypatch.chdir(tmp_path)
    config = WorldConfig(
        seed=0, train_scenes=1, val_scenes=0, keyframes_per_scene=1, image_size=(64, 36), jpeg_quality=80
    )
    ensure_world(Path("data/demo"), config, workers=1)
    assert str(tmp_path / "data/demo") in capsys.readouterr().err
    ensure_world(Path("data/demo"), config, workers=1)
    assert capsys.readouterr().err == ""


def code(text: str) -> str:
    """The first Python of a text."""
    return re.findall(r"```python\n(.+?)```", text, re.DOTALL)[0]


def test_the_store_reads_as_shown(workshop: Workshop, monkeypatch):
    monkeypatch.chdir(workshop.folder)
    names: dict = {}
    exec(code(STORE), names)
    store, row, logits = names["store"], names["row"], names["logits"]
    assert logits.shape == (200, 200, 16, 18)
    semantics = store["voxel_semantics"][row]
    assert (logits.argmax(-1) == semantics)[semantics != 255].mean() > 0.99
    assert store["tokens"][row] != ""
    assert names["dumped"].all()


def test_a_pack_reads_as_shown(workshop: Workshop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "stores/demo-fusion-occ3d.zarr"
    shutil.copytree(workshop.folder / "stores/demo-fusion-occ3d.zarr", path)
    store = TeacherStore(path)
    Packing(store).run()
    names: dict = {}
    exec(code(STORE.partition("## Packs")[2]), names)
    pack, token = names["pack"], names["pack"].attrs["tokens"][0]
    assert (names["first"], token) == (pack.attrs["rows"][0], store.tokens[names["first"]])
    assert (pack["voxel_semantics"][names["first"]] == store.semantics(token)).all()


def test_arrays_and_attributes_of_a_store_are_documented(workshop: Workshop):
    store = zarr.open_group(workshop.folder / "stores/demo-fusion-occ3d.zarr", mode="r")
    documented = {name for names in re.findall(r"^\|(.+?\|.+?)\|", STORE, re.MULTILINE) for name in ticked(names)}
    assert {*store.array_keys(), *store.attrs} - documented == set()
    assert f"| `schema` | {store.attrs['schema']} |" in STORE


def test_metrics_are_used_alone_as_shown(workshop: Workshop):
    root = workshop.folder / "data/demo"
    keyframes = load_index(root, "v1.0-demo", workshop.folder / "cache").keyframes("val")
    scene = [keyframe for keyframe in keyframes if keyframe.scene == keyframes[0].scene]
    label = np.load(root / "gts" / scene[1].scene / scene[1].token / "labels.npz")["semantics"]
    names = {
        "prediction_XYZ": label,
        "semantics_XYZ": label,
        "lidar2ego_K44": np.stack([keyframe.lidar2ego for keyframe in scene]),
        "ego2global_K44": np.stack([keyframe.ego2global for keyframe in scene]),
        "keyframe": 1,
    }
    exec(code(METRICS), names)
    assert float(names["metric"].compute()["RayIoU"]) == 100


def test_the_groups_are_documented():
    rows = dict(re.findall(r"^\| `(\w+)=` \| (.+) \|$", GUIDE, re.MULTILINE))
    assert rows.keys() == GROUPS
    for group, cells in rows.items():
        options = {file.stem for file in (CONF / group).glob("*.yaml")}
        assert {name for name in ticked(cells) if name in options} == options - HIDDEN.get(group, set())


def test_values_that_are_named_exist():
    for text in TEXTS:
        for token in ticked(text):
            key, equals, _ = token.split()[0].partition("=")
            value = equals or (key.partition(".")[0] in GROUPS and re.fullmatch(r"[a-z_]\w*(\.[a-z_]\w*)+", key))
            module = ROOT / key.replace(".", "/")
            if value and not (module.is_dir() or module.with_suffix(".py").exists()):
                assert key.lstrip("+") in known_values(), token


def ticked(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


@cache
def known_values() -> frozenset[str]:
    """Every group, and every value in any of the YAML files."""
    found = GROUPS | {f"hydra/{folder.name}" for folder in (CONF / "hydra").iterdir()}
    for file in CONF.rglob("*.yaml"):
        group = "" if file.parent == CONF or "@package _global_" in file.read_text() else file.parent.name
        found |= set(below(OmegaConf.load(file), group))
    return frozenset(found)


def below(node: object, key: str) -> list[str]:
    """Names of the values below a node, with its own."""
    if not isinstance(node, DictConfig):
        return [key]
    children = [(f"{key}.{name}".lstrip("."), node._get_node(name)) for name in node]
    return [key, *(name for path, child in children for name in below(child, path))]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120
