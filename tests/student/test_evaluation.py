"""What occ-eval is made of, on tiny grids: sources, the scorecard and its self-check, the choice of pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from distill.checkpoint import Checkpoint
from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.frame import stack
from distill.gaussians import Gaussians
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.metrics import RayIoU
from distill.nuscenes.keyframe import Keyframe
from distill.signals import GaussianKind, described
from distill.signals.gaussians import GaussianSet, render
from distill.signals.voxels import Voxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from student.evaluation.comparison import check_export
from student.evaluation.folder import begin, default_folder, name_of
from student.evaluation.pictures import check_wanted, choose
from student.evaluation.predictions import PredictionsFolder, write_prediction
from student.evaluation.report import write_numbers
from student.evaluation.request import settings_of
from student.evaluation.scorecard import ScenePoses, Scorecard, self_check
from student.evaluation.sources import Prediction, PredictionsSource, StoreSource

# the Gaussians overlap, and both reach higher than the 3 m that Gaussians are known for
GRID = VoxelGrid("tiny", "ego", (-3.0, -3.0, 0.0), 1.0, (6, 6, 5))
FINER = VoxelGrid("finer", "ego", (-2.0, -2.0, 1.0), 0.5, (8, 8, 6))
LIDAR = replace(GRID, name="tiny lidar", frame="lidar")
FREE, CAR, ROAD = 17, 4, 11
CPU = torch.device("cpu")


def keyframe(place: int) -> Keyframe:
    """The `place`-th of a scene that drives 0.25 m ahead in every keyframe."""
    ego2global, lidar2ego = np.eye(4), np.eye(4)
    ego2global[0, 3], lidar2ego[:3, 3] = 0.25 * place, (0.5, 0.0, 2.5)
    neighbours = (f"{place - 1:032d}" if place else "", f"{place + 1:032d}" if place < 2 else "")
    return Keyframe(f"{place:032d}", "scene", place, *neighbours, (), Path("scan"), 5, lidar2ego, ego2global)


@dataclass
class Index:
    """The scene of `keyframe`, as `NuScenesIndex` shows it."""

    tokens = tuple(keyframe(place).token for place in range(3))
    scenes = ("scene",) * 3

    def select(self, tokens: list[str]) -> list[Keyframe]:
        return [keyframe(self.tokens.index(token)) for token in tokens]


@dataclass
class Labels:
    """A road with a car on it, the same in every keyframe; what is high is not seen."""

    grid = GRID

    def read(self, keyframe: Keyframe) -> dict[str, np.ndarray]:
        semantics = np.full(GRID.shape, FREE, np.uint8)
        semantics[:, :, 0], semantics[1:3, 2:4, 1] = ROAD, CAR
        seen = np.ones(GRID.shape, bool)
        seen[:, :, 4] = False
        return {"semantics": semantics, "mask_camera": seen, "mask_lidar": seen}


def scorecard(grid=GRID, classes=OCC3D_CLASSES, probabilities=False) -> Scorecard:
    with initialize_config_module("conf", version_base="1.3"):
        settings = compose("eval").metrics
    return Scorecard(grid, classes, settings, ScenePoses(Index(), grid), CPU, probabilities)


def tensors(labels: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in labels.items()}


# --- a teacher's store as a source


@pytest.fixture
def gaussians():
    semantics = torch.zeros(2, 18)
    semantics[:, CAR] = 1.0
    means, scales = torch.tensor([[0.5, 0.5, 1.5], [-1.5, 1.5, 4.0]]), torch.full((2, 3), 0.8)
    rotations = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(2, 1)
    return Gaussians(means, scales, rotations, torch.ones(2), semantics, "probabilistic", 4.0, "stable", SURROUNDOCC)


@pytest.fixture(params=[True, False], ids=["with voxels", "Gaussians alone"])
def store(request, tmp_path, gaussians):
    names = OCC3D_CLASSES.names
    kind = GaussianKind(2, gaussians.form, gaussians.reach, gaussians.det, gaussians.space)
    signals = [Voxels.of(None, GRID, names)] if request.param else []
    identity = StoreIdentity("t", "", {}, GRID, names, described([*signals, GaussianSet(GRID, names, kind)]))
    token = keyframe(0).token
    writer = StoreWriter.open(tmp_path / "store.zarr", identity, [token], ["scene"])
    log_probs, covered = everything(gaussians, GRID, torch.eye(4))
    said = {"voxels": log_probs.numpy(), "gaussians": gaussians}
    semantics = log_probs.argmax(-1).to(torch.uint8).numpy()
    writer.write(token, said, semantics, covered.numpy(), np.zeros(8, np.uint32))
    return TeacherStore(tmp_path / "store.zarr")


def everything(gaussians, grid, lidar2grid):
    told = render(gaussians, grid, lidar2grid, torch.arange(np.prod(grid.shape)))
    return [values.unflatten(0, grid.shape) for values in told]


@pytest.mark.parametrize("grid", [GRID, FINER, LIDAR], ids=lambda grid: grid.name)
def test_a_store_is_free_where_its_teacher_has_modelled_nothing(store, gaussians, grid):
    source = StoreSource("teacher", [store], grid, OCC3D_CLASSES, CPU)
    frame = replace(keyframe(0), lidar2ego=np.eye(4))
    batch = stack([source.dataset([frame], Labels())[0]])
    (prediction,) = source.predict(batch)
    log_probs, covered = everything(gaussians, grid, torch.eye(4))
    assert covered.any()
    assert (log_probs.argmax(-1)[~covered] == CAR).any()
    expected = log_probs.argmax(-1).masked_fill(~covered, FREE).to(torch.uint8)
    assert torch.equal(prediction.semantics_XYZ, expected)
    assert torch.equal(prediction.covered_XYZ, covered)
    given = prediction.log_probs_XYZC[covered].exp()
    torch.testing.assert_close(given.sum(-1), torch.ones(len(given)))
    torch.testing.assert_close(given, log_probs[covered].exp(), atol=0.01, rtol=0.0)
    assert set(expected.flatten().tolist()) == {CAR, FREE}
    assert source.missing([frame.token, "f" * 32]) == ["f" * 32]


def test_a_store_of_another_grid_without_gaussians_is_refused(tmp_path):
    names = OCC3D_CLASSES.names
    identity = StoreIdentity("t", "", {}, GRID, names, described([Voxels.of(None, GRID, names)]))
    StoreWriter.open(tmp_path / "store.zarr", identity, [keyframe(0).token], ["scene"])
    with pytest.raises(InputError, match="grid"):
        StoreSource("t", [TeacherStore(tmp_path / "store.zarr")], FINER, OCC3D_CLASSES, CPU)


def test_sources_are_named_after_runs_files_and_folders():
    assert name_of("runs/kd_none/best.pt") == "kd_none"
    assert name_of("runs/kd_none/last.pt") == "kd_none"
    assert name_of("exports/mine.safetensors") == "mine"
    assert name_of("stores/demo-fusion.zarr") == "demo-fusion"
    assert name_of("predictions/flashocc") == "flashocc"
    assert name_of("predictions/flashocc_v1.2") == "flashocc_v1.2"
    assert name_of("runs/lr0.01/best.pt") == "lr0.01"
    assert name_of("exports/student_v1.1.safetensors") == "student_v1.1"


def folder_of(*overrides: str, own_data: bool = True) -> str:
    """Of the report of a call with these overrides."""
    with initialize_config_module("conf", version_base="1.3"):
        return str(default_folder(compose("eval", overrides=list(overrides)), "val", overrides, own_data))


def test_a_plain_call_has_a_plain_folder():
    assert folder_of("checkpoint=runs/a/best.pt", "pictures=[]", "device=cpu", "cost.runs=1") == "runs/a/eval-val"
    assert folder_of("checkpoint=pkg://student/weights/demo.safetensors") == "runs/demo/eval-val"


def test_what_changes_the_scores_is_in_the_name_of_the_folder():
    calls = [
        *([], ["weights=raw"], ["tta=flip"], ["robustness=standard"], ["robustness=standard", "~robustness.blur"]),
        *(["max_samples=2"], ["max_samples=20"], ["data=nuscenes", "data.root=there"], ["data.root=elsewhere"]),
        *(
            ["sources=[b.zarr]"],
            ["sources=[c.zarr]"],
            ["teachers.stored.paths=[b.zarr]"],
            ["metrics.f_score_distance=0.4"],
        ),
    ]
    folders = [folder_of("checkpoint=runs/a/best.pt", *call) for call in calls]
    assert len(set(folders)) == len(calls)
    assert all(Path(folder).parent == Path("runs/a") for folder in folders)
    assert Path(folders[1]).name == "eval-val-weights_raw"
    one, other = ("checkpoint=runs/a/best.pt", "tta=flip", "weights=raw"), ("weights=raw", "tta=flip")
    assert folder_of(*one) == folder_of("checkpoint=runs/a/best.pt", *other)


def test_neighbours_have_folders_of_their_own(tmp_path):
    for name in ("v1.1", "v1.2"):
        (tmp_path / name).mkdir()
    paths = ["best.pt", "last.pt", "best.safetensors", "a.pt", "a.safetensors", "v1.1", "v1.2"]
    data = ("data=nuscenes", "data.root=there", "data.version=v1.0-mini")
    folders = [folder_of(f"sources=[{tmp_path / path}]", *data, own_data=False) for path in paths]
    assert len(set(folders)) == len(paths)
    assert folders[0] == str(tmp_path / "eval-val") and folders[-1] == str(tmp_path / "v1.2-eval-val")


def test_an_evaluation_removes_what_an_earlier_one_left_and_nothing_else(tmp_path):
    old = ["report.html", "metrics.json", "robustness.csv", "bad_predictions.csv", "panels/scene_token.png"]
    others = ["notes.txt", "best.pt", "panels/mine.txt", "export/token.npz"]
    for name in [*old, *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    begin(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(others)


def settings(*overrides: str):
    """The settings in force for a checkpoint of the demo world."""
    with initialize_config_module("conf", version_base="1.3"):
        trained, asked = compose("train"), compose("eval", overrides=list(overrides))
        checkpoint = Checkpoint(Path("best.pt"), "", OmegaConf.to_container(trained, resolve=True), "ema", {}, {})
        return settings_of(asked, {"student": checkpoint})


def test_a_checkpoint_brings_its_own_data():
    assert settings().data.world.seed == 0
    moved = settings("data.root=/elsewhere").data
    assert (moved.name, moved.root, moved.world.seed) == ("demo", "/elsewhere", 0)


def test_a_checkpoint_of_the_demo_world_is_scored_on_real_data():
    real = settings("data=nuscenes", "data.root=/data/nuscenes", "data.version=v1.0-mini").data
    assert (real.root, real.version, real.world) == ("/data/nuscenes", "v1.0-mini", None)


def test_the_split_is_the_one_given_or_the_one_the_checkpoint_was_validated_on():
    assert settings().split == "val"
    assert settings("split=train").split == "train"
    assert settings("data.val_split=mini_val").split == "mini_val"
    assert settings("data.val_split=mini_val", "split=train").split == "train"


def test_data_that_no_checkpoint_brings_are_those_of_nuscenes():
    with initialize_config_module("conf", version_base="1.3"):
        given = settings_of(
            compose("eval", overrides=["data.root=/data", "data.version=v1.0-mini", "cache_dir=/c"]), {}
        )
        assert (given.data.name, given.data.root, given.split) == ("v1.0-mini", "/data", "val")
        assert given.data.cache_dir == "/c"
        with pytest.raises(InputError, match=r"data\.root=PATH"):
            settings_of(compose("eval"), {})


# --- the scorecard


def test_the_self_check_passes_on_both_class_sets():
    labels = tensors(Labels().read(keyframe(1)))
    assert "100" in self_check(scorecard(), scorecard(), labels, keyframe(1))
    labels["semantics"][0] = SURROUNDOCC_CLASSES.ignored
    cards = [scorecard(classes=SURROUNDOCC_CLASSES) for _ in range(2)]
    assert "100" in self_check(*cards, labels, keyframe(1))


@pytest.mark.parametrize("broken", [100.0, 0.0], ids=["all right", "all wrong"])
def test_the_self_check_finds_a_metric_that_counts_nothing(monkeypatch, broken):
    """A ray caster that writes nothing once gave a whole field zeros."""

    def compute(self):
        return {name: torch.tensor(broken) for name in ("RayIoU", "RayIoU@1")} | {
            "RayIoU per class": torch.zeros(3, len(self.classes))
        }

    monkeypatch.setattr(RayIoU, "compute", compute)
    with pytest.raises(InputError, match=r"self-check.*RayIoU"):
        self_check(scorecard(), scorecard(), tensors(Labels().read(keyframe(1))), keyframe(1))


def test_a_scorecard_is_json_with_every_metric():
    card = scorecard(probabilities=True)
    generator = torch.Generator().manual_seed(0)
    for place in range(3):
        labels = tensors(Labels().read(keyframe(place)))
        logits = torch.randn(*GRID.shape, 18, generator=generator)
        logits.scatter_(-1, labels["semantics"].long().unsqueeze(-1), 2.0)
        prediction = Prediction(logits.argmax(-1).to(torch.uint8), logits.log_softmax(-1))
        card.update(prediction, labels["semantics"], labels["mask_camera"], keyframe(place))
    result = json.loads(json.dumps(card.compute(), allow_nan=False))
    expected = {
        *("Occ3D-17 mIoU", "MonoOcc-16 mIoU", "Occ3D-17 geometric IoU", "RayIoU", "RayIoU@1", "RayIoU@2", "RayIoU@4"),
        *("F-score", "ECE", "flicker"),
    }
    assert expected <= result["metrics"].keys()
    assert all(0 < result["metrics"][name] < 100 for name in expected)
    assert result["metrics"]["flicker pairs"] == 2
    assert result["metrics"]["flicker unpaired"] == 0
    assert set(result["per_class"]) >= {"Occ3D-17 IoU", "RayIoU@1", "labelled voxels", "ECE", "flicker"}
    assert result["per_class"]["labelled voxels"]["car"] == 3 * 4
    assert np.sum(result["confusion"]) == 3 * 6 * 6 * 4
    assert sum(result["bands"]["height"]["voxels"]) == 3 * 6 * 6 * 4
    assert sum(result["reliability"]["all"]["voxels"]) == 3 * 6 * 6 * 4
    assert list(card.keyframe_miou) == list(Index.tokens)
    assert len(set(card.keyframe_miou.values())) == 3


def test_counts_of_single_keyframes_add_up_to_everything():
    card = scorecard()
    for place in range(3):
        labels = tensors(Labels().read(keyframe(place)))
        prediction = labels["semantics"].masked_fill(torch.arange(6)[:, None, None] < place, FREE)
        card.update(Prediction(prediction), labels["semantics"], labels["mask_camera"], keyframe(place))
    assert list(card.keyframe_counts) == list(Index.tokens)
    missed = [int(counts[0][ROAD, FREE]) for counts in card.keyframe_counts.values()]
    assert missed == [0, 6, 12]
    confusion_CC, rays_CC, hits_DC = (sum(each) for each in zip(*card.keyframe_counts.values(), strict=True))
    assert torch.equal(confusion_CC.long(), card.occupancy.confusion_CC)
    assert torch.equal(rays_CC.long(), card.rays.rays_CC)
    assert torch.equal(hits_DC.long(), card.rays.hits_DC) and hits_DC.any()


def test_what_a_teacher_has_not_modelled_is_not_calibrated():
    labels = tensors(Labels().read(keyframe(0)))
    log_probs = torch.full((*GRID.shape, 18), 1 / 18).log()
    covered = torch.zeros(GRID.shape, dtype=torch.bool)
    covered[:3] = True
    card = scorecard(probabilities=True)
    card.update(
        Prediction(labels["semantics"], log_probs, covered), labels["semantics"], labels["mask_camera"], keyframe(0)
    )
    assert sum(card.compute()["reliability"]["all"]["voxels"]) == 3 * 6 * 4


def test_rays_begin_where_the_lidar_is_in_the_keyframes_of_the_scene():
    origins = ScenePoses(Index(), GRID).ray_origins(keyframe(1))
    np.testing.assert_allclose(origins, [[0.25, 0, 2.5], [0.5, 0, 2.5], [0.75, 0, 2.5]], atol=1e-6)


def test_the_frame_of_the_grid_moves_with_the_vehicle():
    for grid, height in ((GRID, 0.0), (LIDAR, 2.5)):
        poses = [ScenePoses(Index(), grid).grid2global(keyframe(place)) for place in range(3)]
        assert all(np.allclose((after - before)[:3, 3], (0.25, 0, 0)) for before, after in pairwise(poses))
        assert poses[0][2, 3] == height


# --- the report


def test_differences_are_against_the_first_source(tmp_path, capsys):
    sources = {
        "student": {"mIoU": 26.386, "pairs": 5, "RayIoU": 26.39, "ECE": None},
        "teacher": {"mIoU": 27.254, "pairs": 5, "RayIoU": None, "ECE": 26.39},
    }
    scored = {"convention": "Occ3D-17", "classes": ["car"], "keyframes": 1, "unlabelled": 0, "data": "demo"}
    results = {
        "scored": {**scored, "split": "val", "voxels": "visible", "code": "c"},
        "sources": {
            name: {"kind": "checkpoint", "path": "p", "facts": {}, "metrics": metrics, "per_class": {}}
            for name, metrics in sources.items()
        },
    }
    write_numbers(tmp_path, results, {name: {"a": 1.0} for name in sources}, SimpleNamespace(labelled=[]))
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["mIoU"].split(maxsplit=1) == ["26.39", "27.25 (+0.87)"]
    assert printed["pairs"].split() == ["5", "5"]
    assert printed["RayIoU"].split() == ["26.39"]
    assert printed["ECE"].split() == ["26.39"]
    assert "mIoU,26.39,27.25" in (tmp_path / "summary.csv").read_text().splitlines()


def test_best_median_and_worst_are_shown():
    miou = {"a": 10.0, "b": 30.0, "c": float("nan"), "d": 20.0, "e": 15.0}
    assert choose(["best", "median", "worst"], miou) == {"b": "best", "e": "median", "c": "worst"}
    assert choose(["worst", "d"], miou) == {"c": "worst", "d": "by token"}
    assert choose(["best", "worst"], {"a": 1.0}) == {"a": "best, worst"}


def test_pictures_of_unknown_keyframes_are_refused():
    keyframes = type("Keyframes", (), {"tokens": ["a"]})()
    check_wanted(["best", "a"], keyframes)
    with pytest.raises(InputError, match="bset"):
        check_wanted(["bset"], keyframes)


def test_an_export_never_mixes_with_other_predictions(tmp_path):
    def export_to(folder, *sources):
        check_export(tmp_path / folder, sources, ["a", "b"])

    network = SimpleNamespace(name="student")
    for token in "ab":
        write_prediction(tmp_path / "out/student", token, np.zeros(GRID.shape, np.uint8))
    export_to("new", network)
    export_to("out", network)  # the same call again
    read = PredictionsSource("student-2", PredictionsFolder(tmp_path / "out/student"), 0)
    with pytest.raises(InputError, match=r"predictions of student would be written into .*out/student, which is sco"):
        export_to("out", network, read)
    with pytest.raises(InputError, match=r"predictions of student-2 would be written into .*out/student, which is"):
        export_to("out/student", read)
    export_to("new", network, read)
    write_prediction(tmp_path / "out/student", "c", np.zeros(GRID.shape, np.uint8))
    with pytest.raises(InputError, match=r"out/student holds 1 predictions from elsewhere, .* \(first c\): choose ano"):
        export_to("out", network)
