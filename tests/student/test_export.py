"""occ-export: files that are read again and say what PyTorch says, or one line and an exit code."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from workshop import Workshop

from distill.checkpoint import Checkpoint, load_checkpoint
from distill.command import script
from distill.errors import InputError
from distill.frame import Calibration, Frame
from student.evaluation.deployed import Deployed
from student.export import table
from student.export.main import main
from student.export.onnx_file import write_onnx
from student.export.runtime import OnnxFile
from student.export.table import geometry

SHIPPED = "pkg://student/weights/demo_student.safetensors"
SIZE = (64, 96)
GRID = {"_target_": "distill.grids.VoxelGrid", "name": "small", "frame": "ego"} | {
    "lower": [-8.0, -8.0, -1.0],
    "voxel_size": 0.8,
    "shape": [20, 24, 4],
}
SMALL = (
    f"student.inputs.image_size=[{SIZE[0]},{SIZE[1]}]",
    "student.network.encoder.weights=none",
    "student.network.lift.depth_bins=12",
    "student.network.lift.depth_range=[1.0,9.0]",
    "student.network.head.hidden_channels=16",
)
TINY = (*SMALL, "student.network.encoder.levels=[1,2]", "student.network.encoder.channels=16")


def made(student: str, *overrides: str) -> Checkpoint:
    """A checkpoint of a small network whose answers are of many classes."""
    with initialize_config_module("conf", version_base="1.3"):
        node = compose("common", ["+grid=occ3d", f"+student={student}", *overrides])
    OmegaConf.update(node, "grid", GRID, merge=False)
    config = OmegaConf.to_container(node, resolve=True)
    torch.manual_seed(0)
    network = instantiate(config["student"]["network"])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    logits = [module for module in network.head.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(logits.bias)
    torch.nn.init.normal_(logits.weight)
    return Checkpoint(Path("made.pt"), "ab" * 32, config, "ema", network.state_dict(), {})


def settings(*overrides: str):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("export", ["onnx.outputs=[classes,logits]", *overrides]).onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """student and settings -> its network, and its file as a network; each is made once."""
    folder, known = tmp_path_factory.mktemp("exported"), {}

    def of(student: str, *overrides: str):
        key = json.dumps([student, overrides])
        if key not in known:
            of_file = [override for override in overrides if override.startswith("onnx")]
            checkpoint = made(student, *(override for override in overrides if override not in of_file))
            file = folder / f"{len(known)}.onnx"
            write_onnx(checkpoint, settings(*of_file), file)
            known[key] = SimpleNamespace(network=checkpoint.network(), file=OnnxFile(file), path=file)
        return known[key]

    return of


@pytest.fixture(scope="module")
def flashocc(exported):
    """As its authors' weights want it, for one frame of three cameras."""
    small = (
        "student.network.bev_encoder.widths=[16,24,32]",
        "student.network.bev_encoder.out_channels=16",
        "student.network.encoder.channels=32",
        "student.network.convention=upstream",
    )
    return exported("flashocc_m0", *SMALL, *small, "onnx.batch=1", "onnx.cameras=3")


def frame(seed: int, batch: int, cameras: int, past: int = 0) -> Frame:
    """Cameras anywhere near the middle of the grid, looking anywhere."""
    random = torch.Generator().manual_seed(seed)

    def uniform(lower: float, upper: float, *shape: int) -> torch.Tensor:
        return lower + (upper - lower) * torch.rand(batch, cameras, *shape, generator=random)

    lens = torch.eye(3).repeat(batch, cameras, 1, 1)
    lens[..., 0, 0], lens[..., 1, 1] = uniform(40, 120), uniform(40, 120)
    lens[..., 0, 2], lens[..., 1, 2] = uniform(30, 60), uniform(20, 40)
    pose = torch.eye(4).repeat(batch, cameras, 1, 1)
    pose[..., :3, :3] = torch.linalg.qr(uniform(-1, 1, 3, 3)).Q
    pose[..., :3, 3] = uniform(-2, 2, 3)
    ego2present = torch.eye(4).repeat(batch, 1, 1)
    ego2present[:, :2, 3] = -1.5
    return Frame(
        channels=[("CAM_FRONT_LEFT", *map(str, range(cameras - 1)))] * batch,
        images=torch.randint(0, 256, (batch, cameras, 3, *SIZE), dtype=torch.uint8, generator=random),
        intrinsics=lens,
        cam2ego=pose,
        calibration=Calibration(
            intrinsics=lens,
            source2image=torch.eye(3).repeat(batch, cameras, 1, 1),
            cam2ego=pose,
            ego2global=torch.eye(4).repeat(batch, cameras, 1, 1),
            world=torch.eye(4).repeat(batch, 1, 1),
        ),
        past=tuple(frame(seed + 100 * step, batch, cameras) for step in range(1, past + 1)) or None,
        ego2present=ego2present,
    )


def check_alike(told: SimpleNamespace, batch: Frame) -> None:
    with torch.inference_mode():
        expected = told.network(batch).voxel_logits_BXYZC
    found = Deployed(told.file)(batch).voxel_logits_BXYZC
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (found.argmax(-1) != expected.argmax(-1)).float().mean() <= 1e-4
    assert len(expected.argmax(-1).unique()) > 3
    assert np.array_equal(Deployed(told.file)(batch).voxel_logits_BXYZC, found)


@pytest.mark.parametrize(("batch", "cameras"), [(1, 6), (2, 3), (1, 1)])
def test_a_student_answers_as_in_pytorch_with_any_cameras(exported, batch, cameras):
    """Those of every frame its own; heights in slices."""
    told = exported("demo", *TINY)
    for seed in range(3):
        check_alike(told, frame(seed, batch, cameras))


def test_a_student_that_looks_back_answers_as_in_pytorch(exported):
    """With tables of its cameras; with a past, and where the present stands in for it."""
    told = exported("demo_2f", *TINY, "onnx.pool=table")
    for batch, cameras in ((2, 2), (1, 3)):
        check_alike(told, frame(0, batch, cameras, past=1))
    present = frame(0, 2, 2)
    poses = (present.intrinsics.numpy(), present.cam2ego.numpy())
    feeds = {"images": present.images.numpy(), **geometry(*poses, told.file.facts["lift"])}
    feeds |= {"past": np.full((2, *told.file.inputs["past"][1:]), 1e3, np.float32)}
    feeds |= {"ego2present": np.full((2, 1, 4, 4), 7, np.float32), "remembered": np.zeros((2, 1), bool)}
    itself = replace(present, past=(replace(present, ego2present=torch.eye(4).repeat(2, 1, 1)),))
    with torch.inference_mode():
        expected = told.network(itself).voxel_logits_BXYZC
        bev_BCXY = told.network.lifted(present, None).bev_BCXY
    found = told.file.run(feeds)
    assert np.abs(found["logits"] - expected.numpy()).max() <= 1e-4 * expected.abs().max()
    assert np.abs(found["bev"] - bev_BCXY.numpy()).max() <= 1e-4 * bev_BCXY.abs().max()


def test_flashocc_answers_as_in_pytorch(flashocc):
    assert flashocc.file.facts["key_camera"] == "CAM_FRONT_LEFT"
    for seed in range(3):
        check_alike(flashocc, frame(seed, 1, 3))


def test_a_file_says_what_it_is(exported):
    told = exported("demo", *TINY)
    model = onnx.load(told.path)
    assert [(each.domain, each.version >= 17) for each in model.opset_import] == [("", True)]
    assert not model.functions
    assert all(node.domain == "" for node in model.graph.node)
    facts = told.file.facts
    assert facts["checkpoint_sha256"] == "ab" * 32
    assert facts["grid"]["shape"] == [20, 24, 4]
    assert facts["classes"]["names"][facts["classes"]["free"]] == "free"
    assert facts["inputs"]["image_size"] == list(SIZE)
    assert facts["code_licence"] == "Apache-2.0" and facts["weights_licence"] == "not stated"
    assert told.file.inputs["images"] == ("batch", "cameras", 3, *SIZE)


def test_the_table_ships_as_a_file_of_numpy_alone(exported, flashocc):
    source = Path(table.__file__)
    spec = importlib.util.spec_from_file_location("best_table", source)
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert {name for name in vars(alone) if not name.startswith("_")} == {"np", "geometry"}
    batch, told = frame(0, 1, 2), exported("demo", *TINY)
    found = alone.geometry(batch.intrinsics.numpy(), batch.cam2ego.numpy(), told.file.facts["lift"])
    cells = told.network.lift.cells(batch.intrinsics, batch.cam2ego, (16, 24), 4)
    assert np.array_equal(found["cells"], cells.cell_BNDHW)
    np.testing.assert_allclose(found["road"], cells.near_ground_BNDHW, atol=1e-5)
    theirs = alone.geometry(batch.intrinsics.numpy(), batch.cam2ego.numpy(), flashocc.file.facts["lift"])
    assert np.array_equal(theirs["cells"], flashocc.network.cells_of(batch.intrinsics, batch.cam2ego, SIZE))
    body = source.read_text().rpartition('"""\n')[2]
    assert len(body.splitlines()) <= 30


def test_what_does_not_fit_is_refused(exported, flashocc):
    with pytest.raises(InputError, match=r"images is \(1, 2, 3, 64, 96\), and the graph takes \(1, 3, 3, 64, 96\)"):
        Deployed(flashocc.file)(frame(0, 1, 2))
    free, batch = exported("demo", *TINY), frame(0, 1, 2)
    feeds = {name: getattr(batch, name).numpy() for name in ("images", "intrinsics", "cam2ego")}
    with pytest.raises(InputError, match=r"intrinsics is \(1, 2, 4, 4\), and the graph takes \(batch, cameras, 3, 3\)"):
        free.file.run(feeds | {"intrinsics": feeds["cam2ego"]})
    with pytest.raises(InputError, match=r"cam2ego is \(1, 1, 4, 4\).* with batch=1, cameras=2"):
        free.file.run(feeds | {"cam2ego": feeds["cam2ego"][:, :1]})
    with pytest.raises(InputError, match="input cam2ego is not given"):
        free.file.run({name: value for name, value in feeds.items() if name != "cam2ego"})
    feeds["cam2ego"][0, 0, 1, 3] = np.nan
    with pytest.raises(InputError, match="cam2ego holds NaN or infinity"):
        free.file.run(feeds)


def test_what_is_no_file_of_ours_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(InputError, match=r"text.onnx: ONNX Runtime cannot read it"):
        OnnxFile(tmp_path / "text.onnx")
    with pytest.raises(InputError, match=r"nothing.onnx: no such file"):
        OnnxFile(tmp_path / "nothing.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "theirs", [value], [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(InputError, match="an ONNX file that occ-export of this version did not write"):
        OnnxFile(tmp_path / "theirs.onnx")


def test_a_student_without_a_known_graph_is_refused(tmp_path):
    checkpoint = made("flashocc_m2", "student.network.encoder.weights=none")
    with pytest.raises(InputError, match=r"no ONNX graph of a FlashOccStereo is known.* format=safetensors takes any"):
        write_onnx(checkpoint, settings(), tmp_path / "m2.onnx")
    assert not list(tmp_path.iterdir())


def test_a_trained_students_file_scores_as_its_checkpoint(workshop: Workshop, trained: Path):
    printed = workshop.ok("occ-export", f"checkpoint={trained}", "output=first.onnx", "onnx.outputs=[classes,logits]")
    assert "first.onnx: demo" in printed
    quick = ("cost.warmup=0", "cost.runs=1", "max_samples=2", "pictures=[]", "teachers.stored.paths=[]")
    workshop.ok("occ-eval", f"checkpoint={trained}", "sources=[first.onnx]", *quick, "output=both")
    sources = json.loads((workshop.folder / "both/metrics.json").read_text())["sources"]
    assert sources["first"]["kind"] == "ONNX file"
    for name, value in sources["student"]["metrics"].items():
        assert sources["first"]["metrics"][name] == pytest.approx(value, abs=0.01), name
    assert sources["first"]["cost"]["latency_ms"]["median"] > 0
    data = ("data.root=data/demo", "data.version=v1.0-demo", "data.cache_dir=cache")
    assert "is on grid" in workshop.refused("occ-eval", "sources=[first.onnx]", *data, "grid=surroundocc", *quick)


def run(monkeypatch, *overrides):
    monkeypatch.setattr("sys.argv", ["occ-export", *map(str, overrides)])
    main()


def test_safetensors_are_read_again(tmp_path, monkeypatch):
    run(monkeypatch, f"checkpoint={SHIPPED}", "format=safetensors", f"output={tmp_path}/out.safetensors")
    original, written = load_checkpoint(SHIPPED, "ema"), load_checkpoint(str(tmp_path / "out.safetensors"), "ema")
    assert (written.config, written.facts) == (original.config, original.facts)
    assert all((written.state[name] == value).all() for name, value in original.state.items())


@pytest.mark.parametrize(
    ("checkpoint", "file_format", "output", "message"),
    [
        ("nothing.pt", "safetensors", "out.safetensors", "nothing.pt: no such file"),
        ("text.pt", "onnx", "out.onnx", "text.pt: not a file of PyTorch weights"),
        (".", "safetensors", "out.safetensors", "a folder"),
        (SHIPPED, "safetensors", "nowhere/out.safetensors", "nowhere/out.safetensors: there is no folder"),
        (SHIPPED, "safetensors", "/proc/out.safetensors", "/proc/out.safetensors: cannot write it"),
        (SHIPPED, "safetensors", "out.pt", "name it out.safetensors"),
        (SHIPPED, "onnx", "out.pt", "name it out.onnx"),
        ("text.pt", "pickle", "out.pickle", "format=pickle: should be 'onnx' or 'safetensors'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, checkpoint, file_format, output, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, f"checkpoint={checkpoint}", f"format={file_format}", f"output={output}")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("occ-export: error: ") and message in line
    assert [file.name for file in tmp_path.iterdir()] == ["text.pt"]


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("student.export.runtime.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run(monkeypatch, f"checkpoint={SHIPPED}", f"output={tmp_path}/out.onnx")
    assert "ONNX files need onnx, onnxscript, onnxruntime: pip install 'occ-distill[onnx]'" in capsys.readouterr().err


def test_a_script_that_is_interrupted_says_so(capsys):
    @script
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        interrupted()
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")


def test_a_defect_of_a_script_keeps_its_traceback():
    @script
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
