"""FlashOcc against numbers of upstream's own code, and what it does with files and frames that are none of its."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from made import FREE
from omegaconf import OmegaConf
from PIL import Image

from distill.augment import ImageTransform
from distill.checkpoint import save_training_state
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Calibration, Frame, Mirror
from distill.losses.supervised import cross_entropy
from distill.networks.flashocc.bev_encoder import Block
from distill.networks.flashocc.depth_net import camera_numbers
from distill.networks.flashocc.encoder import normalised
from distill.networks.flashocc.lift import frustum
from distill.networks.flashocc.rig import rigs_of
from distill.networks.flashocc.stereo import cost_volume
from distill.networks.flashocc.stereo_network import motion, warped
from distill.networks.flashocc.weights import PUBLISHED
from distill.networks.network import streamed
from distill.networks.prediction import DepthBins, depth_bin
from distill.networks.published import open_network, recognised
from distill.nuscenes.images import read_images
from distill.nuscenes.keyframe import Camera, Keyframe
from distill.rigid import from_quaternion
from student.evaluation.sources import NetworkSource
from student.train import load_initial, take_convention
from teacher_dump.border import open_teacher

KEY = "CAM_FRONT_LEFT"
SIZE = (256, 704)
UPSTREAM = {"flashocc_m0": "flashocc-r50-M0", "flashocc_m1": "flashocc-r50", "flashocc_m2": "flashocc-r50-4d-stereo"}
WORLDS = {"bda00": Mirror(), "bda10": Mirror(x=True), "bda01": Mirror(y=True), "bda11": Mirror(x=True, y=True)}


def network(student: str, *overrides: str) -> torch.nn.Module:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", f"+student={student}", *overrides])
    return instantiate(config.student.network).eval()


@pytest.fixture(scope="session")
def detfill(shared):
    """The module that makes weights, images and rigs."""
    spec = importlib.util.spec_from_file_location("detfill", shared / "fixtures/flashocc/detfill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def upstream_names(shared):
    """Config -> name -> shape and dtype."""
    return json.loads((shared / "fixtures/flashocc/state_dict_keys.json").read_text())


class Golden:
    """Numbers of one network's stages, which may be parts of them."""

    def __init__(self, file):
        self.content = np.load(file)
        self.parts = json.loads(str(self.content["slices"]))

    def apart(self, name: str, value: torch.Tensor) -> float:
        """The largest difference, relative to the largest number."""
        part = self.parts[name]
        found = eval(f"value{part[part.index('[') :]}", {"value": value.detach()}).numpy()
        expected = self.content[name]
        assert found.shape == expected.shape
        return float(np.abs(found - expected).max() / np.abs(expected).max())


def calibration(rig, time: int) -> Calibration:
    at = slice(6 * time, 6 * time + 6)
    source2image = np.tile(np.eye(3, dtype=np.float32), (6, 1, 1))
    source2image[:, :2, :2] = rig["post_rots"][at, :2, :2]
    source2image[:, :2, 2] = rig["post_trans"][at, :2]
    named = {"intrinsics": rig["intrins"][at], "source2image": source2image}
    named |= {"cam2ego": rig["sensor2ego"][at], "ego2global": rig["ego2global"][at]}
    batch = {name: torch.from_numpy(array.copy())[None] for name, array in named.items()}
    return Calibration(**batch, world=torch.eye(4)[None])


def rigged(detfill, times: int) -> Frame:
    """A frame without images, and its past."""
    rig = detfill.rig(0, times)
    past = tuple(Frame(calibration=calibration(rig, time)) for time in range(1, times))
    images = torch.zeros(1, 6, 3, *SIZE, dtype=torch.uint8)
    return Frame(token=["a"], channels=[detfill.CAMS], images=images, calibration=calibration(rig, 0), past=past)


@pytest.fixture(scope="module")
def m0(detfill, upstream_names, shared, tmp_path_factory):
    """M0 with weights from a file, the frame, its images, and upstream's numbers."""
    filled = {
        name: torch.zeros(shape, dtype=torch.int64) if (value := detfill.fill(name, tuple(shape))) is None else
        torch.from_numpy(value)
        for name, (shape, _) in upstream_names["flashocc-r50-M0"].items()
    }  # fmt: skip
    file = tmp_path_factory.mktemp("flashocc") / "epoch_24_ema.pth"
    torch.save({"epoch": 24, "state_dict": filled, "updates": 12}, file)
    built = network("flashocc_m0", "student.network.convention=upstream")
    built.published().load(built, file)
    images = torch.from_numpy(detfill.images(0))[None]
    return built, rigged(detfill, 1), images, Golden(shared / "fixtures/flashocc/m0.npz")


@pytest.fixture(scope="module")
def features(m0):
    """Of the images: the backbone's stages, the pyramid, depth and context; in float64, free of noise of ours."""
    built, _, images, _ = m0
    encoder, lift = copy.deepcopy(built.encoder).double(), copy.deepcopy(built.lift).double()
    with torch.no_grad():
        stages = encoder.backbone(images[0].double(), 4)
        merged = encoder.merge(stages[2:])
        return stages, merged, *lift.predict(merged[None])


def test_weights_are_all_there(m0):
    built, *_ = m0
    assert len(built.state_dict()) == 430
    assert sum(weights.numel() for weights in built.parameters()) == 39_938_892


def test_stages_of_the_image_encoder(m0, features):
    *_, golden = m0
    stages, merged, depth, context = features
    named = {f"backbone/layer{i}": stage for i, stage in enumerate(stages, 1)}
    named |= {"neck": merged, "depth_logits": depth[0], "depth": depth[0].softmax(1), "context": context[0]}
    assert {name: apart for name, value in named.items() if (apart := golden.apart(name, value)) > 2e-6} == {}


def test_points_lie_where_upstream_puts_them(m0):
    built, frame, _, golden = m0
    np.testing.assert_array_equal(built.lift.depth_D, golden.content["depth_bins"])
    points = built.lift.points(rigs_of(frame, KEY)[0], SIZE, 16, corners=True)
    assert golden.apart("bda00/ego_points", points[0]) == 0
    cells = built.cells(frame)[0].flatten()[::7]
    np.testing.assert_array_equal(cells, golden.content["bda00/cell_sub7"])


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_points_are_pooled_in_every_world(m0, features, world):
    built, frame, _, golden = m0
    cells = built.cells(frame.mirrored(WORLDS[world]))
    counts = cells[cells >= 0].bincount(minlength=200 * 200).view(200, 200)
    np.testing.assert_array_equal(counts, golden.content[f"{world}/points_per_cell"])
    with torch.no_grad():
        bev = built.lift.splat(*features[2:], cells)[0]
    assert golden.apart(f"{world}/bev_pool", bev) < 3e-6


def loss_of(logits_VC, labels, mask, balanced: bool):
    weights = torch.as_tensor(OCC3D_CLASSES.weights("log")) if balanced else torch.ones(18)
    return cross_entropy(logits_VC[mask].log_softmax(-1), labels[mask], weights)


def labels_in(detfill, mirror: Mirror):
    axes = [axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
    labels, mask = (torch.from_numpy(np.flip(each, axes).copy()).flatten() for each in detfill.labels(0))
    return labels.long(), mask.bool()


def check_answer(golden: Golden, world: str, logits_VC: torch.Tensor) -> None:
    assert golden.apart(f"{world}/logits", logits_VC) < 1e-5
    assert (logits_VC.argmax(1).numpy() != golden.content[f"{world}/argmax"].flatten()).sum() <= 20


def test_the_answer_in_a_mirrored_world(m0, detfill):
    built, frame, images, golden = m0
    with torch.no_grad():
        found = built.predict([images], frame.mirrored(WORLDS["bda11"]))
    logits_VC = found.voxel_logits_BXYZC[0].flatten(0, 2)
    assert golden.apart("bda11/bev_out", found.features["bev"].values[0].transpose(1, 2)) < 1e-5
    check_answer(golden, "bda11", logits_VC)
    value = loss_of(logits_VC, *labels_in(detfill, WORLDS["bda11"]), False).item()
    assert value == pytest.approx(float(golden.content["bda11/loss"]), rel=1e-5)


def test_the_answer_losses_and_gradients(m0, features, detfill):
    """Gradients down to the lift."""
    built, frame, _, golden = m0
    depth, context = built.lift.predict(features[1][None].float())
    stages = built.bev_encoder.stages(bev := built.lift.splat(depth, context, built.cells(frame)))
    for stage, value in enumerate(stages):
        assert golden.apart(f"bda00/bev_layer{stage}", value[0]) < 1e-5
    logits_VC = built.head(built.bev_encoder.merge(stages, bev.shape[-2:]))[0].flatten(0, 2)
    check_answer(golden, "bda00", logits_VC)
    labels, mask = labels_in(detfill, Mirror())
    for name, where in {"loss": mask, "loss_nomask": torch.ones_like(mask)}.items():
        for ending, balanced in {"": False, "_balanced": True}.items():
            value = loss_of(logits_VC.detach(), labels, where, balanced).item()
            assert value == pytest.approx(float(golden.content[f"bda00/{name}{ending}"]), rel=1e-5)
    built.zero_grad()
    loss_of(logits_VC, labels, mask, False).backward()
    gradients = {name: weights.grad for name, weights in built.named_parameters() if weights.grad is not None}
    named = [name.removeprefix("grad_norm/") for name in golden.content.files if name.startswith("grad_norm/")]
    named = [name for name in named if PUBLISHED._ours(name) in gradients]
    assert len(named) == 6
    for name in named:
        gradient = gradients[PUBLISHED._ours(name)]
        assert gradient.norm().item() == pytest.approx(float(golden.content[f"grad_norm/{name}"]), rel=1e-4)


def test_what_a_camera_is_said_to_be(detfill, shared):
    golden = Golden(shared / "fixtures/flashocc/m2.npz")
    frame = rigged(detfill, 3)
    assert golden.apart("mlp_input", camera_numbers(rigs_of(frame, KEY)[0])[0]) == 0


def test_the_lift_of_m2(detfill, shared):
    golden = Golden(shared / "fixtures/flashocc/m2.npz")
    with torch.device("meta"):
        built = network("flashocc_m2", "student.network.convention=upstream")
    lift = built.lift
    assert lift.spacing == "log"
    grid = instantiate({"_target_": "distill.grids.named_grid", "name": "occ3d"})
    lift = type(lift)(256, 80, (1.0, 45.0), 88, grid)
    np.testing.assert_allclose(lift.depth_D, golden.content["depth_bins"], rtol=1e-6)
    points = lift.points(rigs_of(rigged(detfill, 3), KEY)[0], SIZE, 16, corners=True)
    cells = lift.cells(points, truncates=True)
    counts = cells[cells >= 0].bincount(minlength=200 * 200).view(200, 200)
    np.testing.assert_array_equal(counts, golden.content["bda00/points_per_cell"])


def test_m2_compares_each_keyframe_with_the_one_before(m0, detfill, shared):
    """The present with the latest of the past, and that with a third one; of the first camera."""
    golden = np.load(shared / "fixtures/flashocc/m2.npz")
    images = torch.from_numpy(detfill.images(0, 3)[:3])  # the latest first
    with torch.no_grad():
        fine = m0[0].encoder.fine(images)[:, None, None]  # stages of the backbone are those of M0
    rigs = [
        rig._replace(**{name: value[:, :1] for name, value in rig._asdict().items() if name != "world_B33"})
        for rig in rigs_of(rigged(detfill, 3), KEY)
    ]
    pixels = frustum(torch.from_numpy(golden["depth_bins"]), SIZE, 4, corners=True)
    for now, name in enumerate(("cost_volume_key", "cost_volume_prev")):
        found = cost_volume(fine[now], fine[now + 1], rigs[now], rigs[now + 1], pixels, SIZE)[0, 0, ::8, ::8, ::16]
        assert np.abs(found.numpy() - golden[name][0]).max() < 1e-4
        assert np.abs(found.numpy() - golden["cost_volume_prev" if now == 0 else "cost_volume_key"][0]).max() > 0.1


@pytest.fixture(scope="module")
def pipeline(shared):
    return np.load(shared / "fixtures/flashocc/pipeline.npz")


@pytest.fixture
def pictured(detfill, tmp_path):
    """A keyframe of one camera."""
    Image.fromarray(detfill.rgb(0)).save(tmp_path / "image.png")
    camera = Camera("CAM_FRONT", tmp_path / "image.png", 1600, 900, np.eye(3), np.eye(4), np.eye(4))
    return Keyframe("a", "scene", 0, "", "", (camera,), Path("scan"), 5, np.eye(4), np.eye(4))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("test", ImageTransform.cover((900, 1600), SIZE)),
        ("train0", ImageTransform(0.47, (20.0, 167.0), flip=True, rotation=4.3, bicubic=True)),
        ("train1", ImageTransform(0.40, (0.0, 104.0), flip=False, rotation=-5.1, bicubic=True)),
        ("train2", ImageTransform(0.55, (150.0, 239.0), flip=True, rotation=-2.0, bicubic=True)),
        ("train3", ImageTransform(0.44, (0.0, 140.0), flip=True, bicubic=True)),
    ],
)
def test_images_byte_for_byte(pipeline, pictured, name, transform):
    images, intrinsics, _ = read_images(pictured, [transform], SIZE)
    picture = np.ascontiguousarray(images[0].transpose(1, 2, 0))
    assert hashlib.sha256(picture.tobytes()).hexdigest() == str(pipeline[f"{name}/uint8_sha256"])
    np.testing.assert_allclose(intrinsics[0, :2, :2], pipeline[f"{name}/post_rot"], atol=1e-7)
    np.testing.assert_allclose(intrinsics[0, :2, 2], pipeline[f"{name}/post_tran"], atol=1e-4)
    read = normalised(torch.from_numpy(images)[None], bgr=True)[0, 0]
    np.testing.assert_allclose(read[:, ::4, ::8], pipeline[f"{name}/net_sub"], atol=1e-6)


def test_poses_from_quaternions(pipeline):
    for camera, quaternions in enumerate(pipeline["sample/quaternions"]):
        for name, quaternion in zip(("sensor2egos", "ego2globals"), quaternions, strict=True):
            expected = pipeline[f"sample/{name}"][camera]
            found = from_quaternion(quaternion, expected[:3, 3]).astype(np.float32)
            np.testing.assert_allclose(found, expected, rtol=0, atol=6e-8)


@pytest.mark.parametrize(("spacing", "name"), [("log", "sid"), ("linear", "linear")])
def test_the_bins_of_measured_depth(pipeline, spacing, name):
    (camera, row, column), depth = pipeline["depth/gt_index"].T, np.full((6, *SIZE), np.inf, np.float32)
    depth[camera, row, column] = pipeline["depth/gt_value"]
    nearest = torch.from_numpy(depth.reshape(6, 16, 16, 44, 16).min((2, 4)))
    found = depth_bin(nearest, 1.0, 45.0, 88, spacing)
    np.testing.assert_array_equal(found, pipeline[f"depth/bin_{name}"])


def test_centres_of_bins_lie_in_them():
    for spacing in ("linear", "log"):
        bins = DepthBins(torch.zeros(1, 1, 88, 1, 1), 1.0, 45.0, 16, spacing)
        assert bins.bin_of(bins.centres()).tolist() == list(range(88))


@pytest.fixture
def published(upstream_names, tmp_path):
    """Writes a file with a network's names and shapes, whose weights are all the same number."""

    def write(config: str, wrapped=lambda state: state, prefix: str = "", value: float = 0.5):
        state = {
            prefix + name: torch.full((), value if shape else 0, dtype=getattr(torch, dtype)).expand(torch.Size(shape))
            for name, (shape, dtype) in upstream_names[config].items()
        }
        torch.save(wrapped(state), tmp_path / "file.pth")
        return tmp_path / "file.pth"

    return write


@pytest.mark.parametrize(("student", "config"), UPSTREAM.items())
def test_a_file_is_known_by_its_names_and_shapes(published, student, config):
    found = recognised(published(config, lambda state: {"meta": {}, "state_dict": state}))
    assert found.student == student
    assert found.config["student"]["network"]["convention"] == "upstream"


def test_a_file_with_one_weight_more_is_of_nobody(published):
    file = published("flashocc-r50", lambda state: {**state, "occ_head.more": torch.zeros(1)})
    with pytest.raises(InputError, match=r"those of none of flashocc_m0, .*: give a checkpoint"):
        recognised(file)


def test_the_large_one_is_of_nobody_known_here(published):
    with pytest.raises(InputError, match="those of none of flashocc_m0"):
        recognised(published("flashocc-stbase-4d-stereo-512x1408"))


@pytest.mark.parametrize(
    ("wrapped", "prefix"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, "meta": {"epoch": 24}}, ""),
        (lambda state: {"epoch": 24, "state_dict": state, "updates": 3}, "module."),
    ],
    ids=["bare", "with meta", "of an average"],
)
def test_files_as_they_come(published, wrapped, prefix):
    built = network("flashocc_m0", "student.network.convention=upstream")
    built.published().load(built, published("flashocc-r50-M0", wrapped, prefix))
    assert {float(weights.min()) for weights in built.parameters()} == {0.5}


def test_it_teaches(published):
    file = published("flashocc-r50-M0", value=0.01)
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("dump", ["teacher=flashocc_m0", f"teacher.checkpoint={file}"])
    teacher = open_teacher(config.teacher)
    assert teacher.features == (128, 1)
    assert teacher.inputs["calibration"] and teacher.inputs["bicubic"] and not teacher.inputs["history"]
    prediction = teacher.predict(small((KEY, "CAM_BACK")))
    torch.testing.assert_close(prediction.voxel_log_probs_BXYZC.exp().sum(-1), torch.ones(1, 200, 200, 16))


def test_training_begins_from_a_file_of_theirs(published):
    file = str(published("flashocc-r50-M0"))
    theirs, own = network("flashocc_m0", "student.network.convention=upstream"), network("flashocc_m0")
    load_initial(theirs, file)
    assert {float(weights.max()) for weights in theirs.parameters()} == {0.5}
    with pytest.raises(InputError, match=r"set student\.network\.convention=upstream"):
        load_initial(own, file)


def test_weights_bring_their_convention_along(published, tmp_path, capsys):
    """Those of upstream's file, those of a checkpoint that was fine-tuned from it, and those of a run that goes on."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", ["student=flashocc_m0", "kd=none"])
    network = config.student.network
    take_convention(config, None)
    assert network.convention == "own" and not capsys.readouterr().out
    config.trainer.init = str(published("flashocc-r50-M0"))
    take_convention(config, None)
    assert network.convention == "upstream"
    assert "its weights are used to student.network.convention=upstream, which is set" in capsys.readouterr().out
    saved = {"config": OmegaConf.to_container(config, resolve=True), "network": {}, "ema": {}}
    facts = {"epoch": 1, "step": 1, "code": "", "teachers": {}, "scores": {}, "data": {}, "files": {}}
    save_training_state(tmp_path / "tuned.pt", saved | facts)
    network.convention = "own"
    take_convention(config, saved)
    assert network.convention == "upstream"
    network.convention, config.trainer.init = "own", str(tmp_path / "tuned.pt")
    take_convention(config, None)
    assert network.convention == "upstream"


def test_it_is_scored_and_it_is_said_whose_weights_they_are(published, capsys):
    found = open_network(str(published("flashocc-r50-M0")), "ema")
    said = "by its names and shapes weights of student=flashocc_m0 student.network.convention=upstream"
    assert said in capsys.readouterr().out
    source = NetworkSource("theirs", found, found.network(), [], torch.device("cpu"))
    assert source.facts["student"] == "flashocc_m0"
    (prediction,) = source.predict(small((KEY, "CAM_BACK")))
    assert prediction.semantics_XYZ.shape == (200, 200, 16)


def test_the_file_of_another_size_is_refused(published):
    built = network("flashocc_m0", "student.network.convention=upstream")
    with pytest.raises(InputError, match=r"another architecture, \d+ differences .*depth_net.weight is \(152, 256"):
        built.published().load(built, published("flashocc-r50"))


def test_broken_weights_are_refused(published):
    built = network("flashocc_m0", "student.network.convention=upstream")
    with pytest.raises(InputError, match="holds NaN or infinite values"):
        built.published().load(built, published("flashocc-r50-M0", value=float("nan")))


def test_upstreams_weights_want_upstreams_convention():
    with torch.device("meta"):
        built = network("flashocc_m0")
    with pytest.raises(InputError, match=r"set student\.network\.convention=upstream"):
        built.published()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=surroundocc", "+student=flashocc_m0"])
    config.student.network.convention = "upstream"
    with pytest.raises(Exception, match="the grid surroundocc lies in the lidar frame"):
        instantiate(config.student.network)


def test_frames_that_it_cannot_look_at():
    built = network("flashocc_m2", "student.network.convention=upstream")
    images = torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"earlier keyframes: its inputs want history=2"):
        built(Frame(images=images))
    built = network("flashocc_m0", "student.network.convention=upstream")
    with pytest.raises(InputError, match=r"image_size=\[64, 80\]: FlashOcc takes multiples of 32"):
        built(Frame(images=torch.zeros(1, 2, 3, 64, 80, dtype=torch.uint8)))
    with pytest.raises(InputError, match=r"its inputs want calibration=true"):
        built(Frame(images=images, channels=[("CAM_FRONT", "CAM_BACK")]))


def small(cameras=("CAM_FRONT", "CAM_BACK"), place: int = 8) -> Frame:
    """Two cameras that look along x and against it, 1.5 m above the ground; the car drives 1 m between keyframes.

    They sit so that no point lies on a border between two cells.
    """
    look = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cam2ego = torch.eye(4).repeat(2, 1, 1)
    cam2ego[0, :3, :3], cam2ego[1, :3, :3] = look, torch.diag(torch.tensor([-1.0, -1, 1])) @ look
    cam2ego[:, :3, 3] = torch.tensor([0.13, 0.07, 1.5])
    lens = torch.tensor([[80.0, 0, 32], [0, 80.0, 32], [0, 0, 1]]).expand(1, 2, 3, 3)

    def at(metres: float) -> Frame:
        ego2global = torch.eye(4).repeat(1, 2, 1, 1)
        ego2global[..., 0, 3] = metres
        parts = Calibration(
            intrinsics=lens,
            source2image=torch.eye(3).expand(1, 2, 3, 3),
            cam2ego=cam2ego[None],
            ego2global=ego2global,
            world=torch.eye(4)[None],
        )
        random = torch.Generator().manual_seed(int(metres))
        images = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8, generator=random)
        return Frame(token=["a"], channels=[cameras], images=images, cam2ego=cam2ego[None], calibration=parts)

    def past(metres: float) -> Frame:
        ego2present = torch.eye(4)[None].clone()
        ego2present[:, 0, 3] = metres - place
        return replace(at(metres), ego2present=ego2present)

    return replace(at(place), past=(past(place - 1), past(place - 2)))


def test_a_rig_without_the_key_camera():
    with pytest.raises(InputError, match="the ego frame of CAM_FRONT_LEFT, and the cameras are CAM_FRONT, CAM_BACK"):
        rigs_of(small(), KEY)


def test_both_conventions_agree_on_cameras_that_expose_at_once():
    frame = small((KEY, "CAM_BACK"))
    for mirror in WORLDS.values():
        seen = frame.mirrored(mirror)
        for own, theirs in zip(rigs_of(seen, None), rigs_of(seen, KEY), strict=True):
            torch.testing.assert_close(own.cam2key_BN44, theirs.cam2key_BN44)
            torch.testing.assert_close(own.world_B33, theirs.world_B33)


@pytest.mark.parametrize("mirror", [Mirror(x=True), Mirror(y=True)])
def test_own_cells_are_mirrored_with_the_world(mirror):
    """By truncation they are not: the cells at the lower borders are larger than those at the upper ones."""
    lift = network("flashocc_m0").lift
    pooled = []
    for seen in (small(), small().mirrored(mirror)):
        points = lift.points(rigs_of(seen, None)[0], (64, 64), 16, corners=False)
        cells = lift.cells(points, truncates=False)
        pooled.append(cells[cells >= 0].bincount(minlength=40000).view(200, 200))
    flipped = pooled[1].flip([1] if mirror.x else [0])
    assert pooled[0].sum() > 100
    assert torch.equal(pooled[0], flipped)


def test_with_a_motion_of_one_cell_features_move_by_one_cell():
    lift = network("flashocc_m2").lift
    bev = torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    still, ahead = torch.eye(3)[None], torch.eye(3)[None].clone()
    ahead[:, 0, 2] = lift.cell_3[0]  # what is here now was a cell further ahead
    torch.testing.assert_close(warped(bev, still, lift), bev, atol=1e-4, rtol=0)
    torch.testing.assert_close(warped(bev, ahead, lift)[..., :-1], bev[..., 1:], atol=1e-4, rtol=0)
    assert warped(bev, ahead, lift)[..., -1].abs().max() < 1e-3


def test_the_motion_is_that_of_the_car():
    present, past, _ = rigs_of(small(), None)
    expected = torch.eye(3)[None].clone()
    expected[:, 0, 2] = 1.0  # what is 0 m ahead now was 1 m ahead
    torch.testing.assert_close(motion(present, past, 0), expected)


def test_images_of_a_camera_that_stands_still_agree_at_every_depth_and_cost_what_is_unseen():
    frame = small()
    rig = rigs_of(frame, None)[0]
    features = torch.rand(1, 2, 8, 16, 16, generator=torch.Generator().manual_seed(1)) + 0.1
    lift = network("flashocc_m2").lift
    pixels = frustum(lift.depth_D, (64, 64), 4, corners=True)
    volume = cost_volume(features, features, rig, rig, pixels, (64, 64))
    assert volume.shape == (1, 2, 88, 16, 16)
    torch.testing.assert_close(volume, torch.full_like(volume, 1 / 88), atol=1e-4, rtol=0)


NARROW = (
    *("student.network.lift.channels=8", "student.network.bev_encoder.in_channels=16"),
    *("student.network.bev_encoder.widths=[8,8,8]", "student.network.bev_encoder.out_channels=8"),
    "student.network.head.hidden_channels=8",
)


@pytest.mark.parametrize(("convention", "align"), [("upstream", "after"), ("own", "before")])
def test_m2_looks_back_and_learns(convention, align):
    options = (f"student.network.convention={convention}", f"student.network.align={align}")
    built, frame = network("flashocc_m2", *NARROW, *options), small((KEY, "CAM_BACK"))
    found = built(frame)
    assert found.voxel_logits_BXYZC.shape == (1, 200, 200, 16, 18)
    assert found.depth.logits_BNDHW.shape == (1, 2, 88, 4, 4)
    found.voxel_logits_BXYZC[..., FREE].mean().backward()
    assert built.encoder.backbone.conv1.weight.grad.abs().sum() > 0
    further = replace(frame.past[1], images=255 - frame.past[1].images)
    with torch.no_grad():
        other = built(replace(frame, past=(frame.past[0], further)))
    assert not torch.equal(found.voxel_logits_BXYZC, other.voxel_logits_BXYZC)


def drive(*places: int) -> Frame:
    """A batch of keyframes of a drive with their past, a metre apart; each place has images of its own."""

    def together(frames) -> Frame:
        parts = [frame.calibration for frame in frames]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name, _ in vars(parts[0]).items()}
        more = (
            {} if frames[0].ego2present is None else {"ego2present": torch.cat([each.ego2present for each in frames])}
        )
        for name in ("images", "cam2ego"):
            more[name] = torch.cat([getattr(frame, name) for frame in frames])
        return Frame(channels=[frame.channels[0] for frame in frames], calibration=Calibration(**joined), **more)

    frames = [small((KEY, "CAM_BACK"), place) for place in places]
    return replace(together(frames), past=tuple(together([frame.past[step] for frame in frames]) for step in range(2)))


@pytest.mark.parametrize("convention", ["upstream", "own"])
def test_m2_looks_at_no_image_twice_and_answers_alike(convention, monkeypatch):
    """In the order of time, out of it, and in batches."""
    built = network("flashocc_m2", *NARROW, f"student.network.convention={convention}")
    looked = Mock(wraps=built.encoder.forward)
    with torch.no_grad():
        expected = [built(drive(8 + place)).voxel_logits_BXYZC for place in range(4)]
        monkeypatch.setattr(built.encoder, "forward", looked)
        answer = streamed(built, calls=1)
        for calls, place in ((3, 0), (1, 1), (1, 2), (1, 3), (3, 0)):
            looked.reset_mock()
            assert torch.equal(answer(drive(8 + place)).voxel_logits_BXYZC, expected[place])
            assert looked.call_count == calls
        together = answer(drive(9, 10)).voxel_logits_BXYZC
    torch.testing.assert_close(together, torch.cat(expected[1:3]), rtol=1e-4, atol=1e-4)


def test_shortcuts_are_bare_convolutions():
    block = Block(4, 8, 2, shortcut=3)
    assert block.downsample.bias is not None and block.downsample.kernel_size == (3, 3)
    assert block(torch.zeros(1, 4, 5, 5)).shape == (1, 8, 3, 3)


def test_half_precision_moves_no_point():
    built = network("flashocc_m2", *NARROW)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert built(small()).voxel_logits_BXYZC.isfinite().all()
        rounded = built.cells(small())
    assert torch.equal(built.cells(small()), rounded)
