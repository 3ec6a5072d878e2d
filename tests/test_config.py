"""Every option of every group composes, is what the schema wants, and what it describes can be built."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conf.schema import checked
from distill.command import user_mistake
from distill.errors import InputError
from student.learner import make_objective

CONF = Path(__file__).parent.parent / "conf"
SHIPPED = "pkg://teacher_dump/weights/fusion_demo.safetensors"
# terms on feature maps that a network of sets has not
NO_MAPS = ["~objective.terms.multi_scale", "~objective.terms.image_semantics"]
GIVEN = {
    "data": {"nuscenes": ["data.root=/d"], "challenge": ["data.root=/d"], "rig": ["data.index=frames.json"]},
    "student": {file.stem: NO_MAPS for file in CONF.glob("student/opus*.yaml")},
    "teacher": {
        "checkpoint": ["teacher.name=n", f"teacher.checkpoint={SHIPPED}"],
        "callable": ["teacher.name=n", "teacher._target_=types.SimpleNamespace"],
        "process": ["teacher.name=n", "teacher.command=conda run --no-capture-output -n theirs python my_teacher.py"],
        "files": ["teacher.name=n", "teacher.folder=f", "teacher.format=sparse", "teacher.grid=occ3d"],
        **{file.stem: ["teacher.checkpoint=c.pth"] for file in CONF.glob("teacher/gaussianformer*.yaml")},
        **{file.stem: ["teacher.checkpoint=c.pth"] for file in CONF.glob("teacher/opus*.yaml")},
        **{file.stem: ["teacher.checkpoint=c.pth"] for file in CONF.glob("teacher/flashocc*.yaml")},
    },
}
# only with what others have: upstream's weights (the network in it is built nevertheless), a program, a folder
UPSTREAM = {
    "teacher_dump.teachers.process.teacher.ProcessTeacher",
    "teacher_dump.teachers.files.teacher.FilesTeacher",
    "teacher_dump.teachers.gaussianformer.teacher.GaussianFormerTeacher",
    "teacher_dump.teachers.network.PublishedTeacher",
}
PROGRAMS = {
    "dump": {"data", "grid", "teacher"},
    "train": {"data", "grid", "student", "objective", "kd", "teachers", "trainer", "experiment"},
    "eval": {"data", "grid", "robustness", "tta"},
    "pool_labels": {"data", "grid"},
    "stores": {"data"},
    "export": {"data", "onnx"},
}
EVAL_ALONE = {("data", "checkpoint"), ("grid", "source"), ("teachers", "checkpoint")}

KD_TERMS = {
    "none": [],
    "voxel": ["kd_voxel"],
    "bev": ["kd_bev"],
    "voxel_bev": ["kd_voxel", "kd_bev"],
    "voxel_bev_occupied": ["kd_voxel", "kd_bev"],
    "balanced": ["kd_voxel", "kd_bev"],
    "decoupled": ["kd_voxel", "kd_bev"],
    "channelwise": ["kd_voxel", "kd_bev", "kd_channelwise"],
    "affinity": ["kd_voxel", "kd_bev", "kd_affinity"],
    "ray_termination": ["kd_voxel", "kd_bev", "kd_rays"],
    "features": ["kd_voxel", "kd_bev", "kd_features"],
    "voxel_features": ["kd_voxel", "kd_bev", "kd_voxel_features"],
    "proposals": ["kd_voxel", "kd_bev", "kd_proposals"],
    "jaccard": ["kd_jaccard"],
    "pseudo": ["pseudo_ce", "pseudo_lovasz"],
    "balanced_pseudo": ["pseudo_ce", "pseudo_lovasz", "kd_voxel", "kd_bev"],
}


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
    if key == "teachers":  # opened with what a run asks them
        return
    if isinstance(node, dict) and node.get("_target_") not in {None, *UPSTREAM}:
        arguments = {name: value for name, value in node.items() if (key, name) != ("teacher", "name")}
        with torch.device("meta") if key == "network" else nullcontext():
            instantiate(arguments)
    elif isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            build(child, name)


@pytest.mark.parametrize(("program", "group", "option"), options())
def test_every_option_composes_and_can_be_built(program, group, option):
    overrides = [f"{group}={option}", *GIVEN.get(group, {}).get(option, [])]
    if program == "stores":
        overrides.append("path=s.zarr")
    if program == "export":
        overrides.append("checkpoint=best.pt")
    if program == "dump" and option in ("nuscenes", "challenge", "rig", "demo_study", "fusion"):
        overrides.append(f"teacher.checkpoint={SHIPPED}")
    if program == "train" and not (group == "student" and option.startswith("opus")):
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
def test_the_objective_has_the_terms_that_are_asked_for(kd):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=[f"kd={kd}"])
    with_depth, without = (make_objective(config, SimpleNamespace(depth_stride=stride)) for stride in (16, None))
    distilled = KD_TERMS[kd]
    assert [name for name, _ in with_depth.items()] == ["ce", "lovasz", "depth", *distilled]
    assert [name for name, _ in without.items()] == ["ce", "lovasz", *distilled]
    others = {"kd_bev": "columns", "kd_features": "features", "kd_voxel_features": "voxel_features"}
    asked = {name: others.get(name, "voxels") for name in distilled}
    assert with_depth.asked("stored") == {*asked.values()} | ({"voxels"} if kd.endswith("occupied") else set())


@pytest.mark.parametrize("student", ["effnet_lite0_2f", "demo_2f"])
def test_a_network_looks_back_as_far_as_its_frames_do(student):
    for history in (1, 2):
        with initialize_config_module("conf", version_base="1.3"):
            given = [f"student={student}", f"student.inputs.history={history}", "student.network.encoder.weights=none"]
            config = compose("train", overrides=given)
        with torch.device("meta"):
            assert instantiate(config.student.network).fusion.history == config.student.inputs.history == history


def test_several_teachers_stand_beside_each_other():
    with initialize_config_module("conf", version_base="1.3"):
        for names in (["stored", "ema"], ["stored", "fusion_branch"]):
            assert [*compose("train", overrides=[f"teachers=[{','.join(names)}]"]).teachers] == names


def test_what_rays_teach_needs_no_voxel_label():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["objective=render_only", "kd=none"])
    objective = make_objective(config, SimpleNamespace(depth_stride=None))
    assert [name for name, _ in objective.items()] == ["ray_depth", "ray_semantics", "ray_entropy", "ray_distortion"]
    assert objective.needs_rays and not objective.needs_depth


def test_weights_of_listening_terms_warm_up_over_the_steps_that_are_said():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["kd.warmup_steps=7"])
    assert make_objective(config, SimpleNamespace(depth_stride=16)).warmup_steps == 7


def test_thresholds_are_of_classes_that_there_are():
    with initialize_config_module("conf", version_base="1.3"):
        config, wrong = (
            compose("train", overrides=["kd=pseudo", f"kd.threshold={{default: 0.5, {name}: 0.25}}"])
            for name in ("pedestrian", "pedestrain")
        )
    objective = make_objective(config, SimpleNamespace(depth_stride=16))
    for name in ("pseudo_ce", "pseudo_lovasz"):
        assert objective.terms[name].threshold == (*[0.5] * 7, 0.25, *[0.5] * 10)
    with pytest.raises(InstantiationException) as caught:
        make_objective(wrong, SimpleNamespace(depth_stride=16))
    assert "threshold.pedestrain: occ3d has no such class" in user_mistake(caught.value)


@pytest.mark.parametrize(
    ("student", "channels"),
    [("effnet_lite0", 128), ("demo", 64), ("demo_2f", 64), ("fusion", 48), ("monoocc", 128)],
)
def test_heads_at_coarser_resolutions_know_the_channels_of_the_network(student, channels):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=[f"student={student}", "objective.terms.multi_scale.weight=0.5"])
    term = make_objective(config, SimpleNamespace(depth_stride=16)).terms["multi_scale"]
    assert term.channels == channels
    assert [*term.heads] == ["2", "4", "8"]


@pytest.mark.parametrize(("student", "channels"), [("effnet_lite0", 128), ("resnet50", 256), ("fusion", 32)])
def test_a_decoder_of_image_features_knows_the_channels_of_the_network(student, channels):
    overrides = [f"student={student}", "student.network.encoder.weights=none"]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=[*overrides, "objective.terms.image_semantics.weight=0.5"])
    assert make_objective(config, SimpleNamespace(depth_stride=16)).terms["image_semantics"].channels == channels


def test_of_a_network_of_ones_own_they_have_to_be_told():
    own = ["kd=none", "~student.network", "+student.network={_target_: mine.Network}"]
    with initialize_config_module("conf", version_base="1.3"):
        plain = compose("train", overrides=own)
        config = compose("train", overrides=[*own, "objective.terms.multi_scale.weight=0.5"])
    assert checked("train", OmegaConf.to_container(config, resolve=True))[1] == []
    make_objective(plain, SimpleNamespace(depth_stride=None))
    with pytest.raises(InstantiationException) as caught:
        make_objective(config, SimpleNamespace(depth_stride=None))
    assert "objective.terms.multi_scale.channels must be given" in user_mistake(caught.value)


@pytest.mark.parametrize(
    ("override", "predicts_depth", "proposes"),
    [("seed=0", True, True), ("student.network.proposals=null", False, False)],
)
def test_monoocc_has_one_stage_by_one_override(override, predicts_depth, proposes):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["experiment=demo_monoocc", "kd=none", override])
    assert checked("train", OmegaConf.to_container(config, resolve=True))[1] == []
    network = instantiate(config.student.network)
    assert (network.depth_stride is not None, network.proposes) == (predicts_depth, proposes)
    terms = {name for name, _ in make_objective(config, network).items()}
    assert terms == {"ce", "lovasz"} | ({"depth", "proposals"} if proposes else set())


def test_depth_alone_is_nothing_for_a_network_without():
    with initialize_config_module("conf", version_base="1.3"):
        others = [f"objective.terms.{name}.weight=0" for name in ("ce", "lovasz")]
        config = compose("train", overrides=["student=fusion", "kd=none", *others])
    with pytest.raises(InputError, match="depth is about depth or proposals, which student=fusion does not predict"):
        make_objective(config, SimpleNamespace(depth_stride=None))


@pytest.mark.parametrize("program", [program for program, groups in PROGRAMS.items() if "grid" in groups])
@pytest.mark.parametrize("grid", ["occ3d", "surroundocc"])
def test_the_grid_brings_its_classes(program, grid):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(program, overrides=[f"grid={grid}"])
    assert instantiate(config.grid).name == instantiate(config.classes).name == grid


@pytest.mark.parametrize("grid", ["occ3d", "surroundocc"])
def test_a_student_looks_by_default_where_its_teacher_writes_by_default(grid):
    with initialize_config_module("conf", version_base="1.3"):
        written, read = (compose(program, overrides=[f"grid={grid}"]) for program in ("dump", "train"))
    assert read.teachers.stored.paths is None
    assert Path(written.store.path).parent == Path(read.teachers.stored.folder)
    assert grid in written.store.path


@pytest.mark.parametrize("data", ["demo", "demo_large", "demo_teacher"])
def test_shipped_weights_are_for_demo_data_alone(data):
    with initialize_config_module("conf", version_base="1.3"):
        assert compose("dump", overrides=[f"data={data}"]).teacher.checkpoint == SHIPPED
        elsewhere = compose("dump", overrides=["data=nuscenes", "data.root=/d"])
    (problem,) = checked("dump", OmegaConf.to_container(elsewhere, resolve=True))[1]
    assert problem.startswith("teacher.checkpoint must be given")


def test_a_study_has_to_train_its_teacher():
    """The shipped one has seen more labels than its controls do."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("dump", overrides=["data=demo_study"])
    (problem,) = checked("dump", OmegaConf.to_container(config, resolve=True))[1]
    assert problem.startswith("teacher.checkpoint must be given")


def test_a_study_has_keyframes_enough_in_towns_of_its_own():
    with initialize_config_module("conf", version_base="1.3"):
        study, shipped = (compose("train", overrides=[f"data={name}"]).data for name in ("demo_study", "demo_teacher"))
    assert study.world.val_scenes * study.world.keyframes_per_scene >= 60
    assert study.root != shipped.root
    assert not {*instantiate(study.world).scenes()} & {*instantiate(shipped.world).scenes()}


def test_eval_takes_everything_else_from_the_checkpoint():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("eval", overrides=["checkpoint=best.pt"])
    assert set(config.data.values()) - {config.cache_dir} == set(config.teachers.stored.values()) == {None}


def test_runs_that_differ_have_folders_that_differ():
    with initialize_config_module("conf", version_base="1.3"):
        folders = {compose("train", overrides=[f"kd={kd}", "seed=3"]).output for kd in ("none", "voxel")}
    assert len(folders) == 2


def test_the_objective_of_sets_is_about_sets():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["student=opus_t", "objective=opus", "kd=none"])
    objective = make_objective(config, SimpleNamespace(depth_stride=None))
    assert [name for name, _ in objective.items()] == ["point_places", "point_classes"]


@pytest.mark.parametrize("size", ["t", "s", "m", "l"])
def test_opus_teaches_with_the_network_that_is_trained(size):
    with initialize_config_module("conf", version_base="1.3"):
        trained = compose("train", overrides=[f"student=opus_{size}"]).student
        teacher = compose("dump", overrides=[f"teacher=opus_{size}", "teacher.checkpoint=c.pth"]).teacher
    trained, teacher = (OmegaConf.to_container(each, resolve=False) for each in (trained, teacher))
    assert {name: teacher[name] for name in trained} == trained


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.network.rule.threshold=1.5", "student.network.rule.threshold=1.5: should be less than 1"),
        ("student.network.rule.power=0", "student.network.rule.power=0: should be greater than 0"),
        ("student.network.rule.most=0", "student.network.rule.most=0: should be greater than or equal to 1"),
        ("student.network.queries=0", "student.network.queries=0: should be greater than or equal to 1"),
        ("student.network.refined=[]", "student.network.refined=[]: "),
        (
            "objective.terms.point_places.rare=[2,2]",
            "objective.terms.point_places.rare=[2, 2]: names one of them twice",
        ),
        ("objective.terms.point_classes.weight=-1", "objective.terms.point_classes.weight=-1: should be greater than"),
    ],
)
def test_values_of_opus_are_checked(override, said):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["student=opus_t", "objective=opus", "kd=none", override])
    (problem,) = checked("train", OmegaConf.to_container(config, resolve=True))[1]
    assert problem.startswith(said)
