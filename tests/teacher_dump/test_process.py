"""Programs that teach: real processes, what they say, how they end, and how occ-dump says it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from workshop import Workshop

from distill.checkpoint import sha256_of
from distill.errors import InputError
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import load_index
from distill.store import TeacherStore
from teacher_dump.asked import AskedFrame, AskedFrames
from teacher_dump.bridge.occ_bridge import PROTOCOL
from teacher_dump.teachers.process.program import BRIDGE, Program
from teacher_dump.teachers.process.teacher import ProcessTeacher

CLASSES = 'kind="classes", axes="XYZ", grid="occ3d", frame="ego", classes="occ3d", confidence=0.9'
LOGITS = 'kind="logits", axes="CXYZ", grid="occ3d", frame="ego", classes="occ3d"'
FREE = "return np.full((200, 200, 16), 17, np.uint8)"
TOKEN = "a" * 32
CPU = torch.device("cpu")


def written(folder: Path, body: str, declared: str = CLASSES, before: str = "") -> str:
    """A program whose function has this body; returns the command that starts it."""
    lines = "\n    ".join(body.splitlines())
    path = folder / "program.py"
    path.write_text(
        f"import os, sys, time\nimport numpy as np\nimport occ_bridge\n{before}\n\n"
        f"@occ_bridge.serve({declared})\ndef answer(keyframe):\n    {lines}\n"
    )
    return f"{sys.executable} {path}"


def opened(command: str, timeout: float = 60.0) -> ProcessTeacher:
    return ProcessTeacher(command, timeout, [32, 64], "cpu")


def frame(*tokens: str) -> AskedFrame:
    given = [
        json.dumps(
            {"token": token, "cameras": {}, "past": [], "ego2global": [], "lidar": {"lidar2ego": np.eye(4).tolist()}}
        )
        for token in tokens
    ]
    return AskedFrame(token=list(tokens), given=given)


def ends(process_id: int) -> bool:
    """Whether a process is gone within seconds."""
    for _ in range(100):
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process_id}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_what_a_program_says_arrives_whole(tmp_path):
    """Each keyframe its own answer, in batches, too, though all come through the same memory."""
    body = "values = np.random.RandomState(int(keyframe['token'], 16) % 97).rand(18, 200, 200, 16)\nreturn values * 5"
    teacher = opened(written(tmp_path, body, LOGITS))
    tokens = ["1" * 32, "2" * 32]
    batch = teacher.predict(frame(*tokens)).voxel_log_probs_BXYZC
    for token, found_XYZC in zip(tokens, batch, strict=True):
        values_CXYZ = np.random.RandomState(int(token, 16) % 97).rand(18, 200, 200, 16) * 5
        expected_XYZC = torch.from_numpy(values_CXYZ).float().permute(1, 2, 3, 0).log_softmax(-1)
        torch.testing.assert_close(found_XYZC, expected_XYZC)
        (alone_XYZC,) = teacher.predict(frame(token)).voxel_log_probs_BXYZC
        assert torch.equal(alone_XYZC, found_XYZC)


def test_whatever_holds_the_numbers_they_arrive_as_they_are(tmp_path):
    """Doubles and bfloat16 as single precision; gradients, strides and the order of bytes stay behind."""
    body = (
        "logits = np.arange(18.0) * np.ones((200, 200, 16, 1))\n"
        "tensor = torch.arange(18.0).bfloat16().requires_grad_().expand(200, 200, 16, 18)\n"
        "return {'a': tensor, 'b': logits, 'c': logits.astype('>f4'), 'd': logits[::-1]}[keyframe['token']]"
    )
    teacher = opened(written(tmp_path, body, LOGITS.replace("CXYZ", "XYZC"), "import torch"))
    for token in "abcd":
        found_BXYZC = teacher.predict(frame(token)).voxel_log_probs_BXYZC
        torch.testing.assert_close(found_BXYZC, torch.arange(18.0).log_softmax(-1).expand(found_BXYZC.shape))


def test_a_loop_answers_as_a_function_does_with_coverage_and_tensors_and_what_it_prints_stays_visible(tmp_path, capfd):
    (tmp_path / "program.py").write_text(
        "import sys, numpy as np, occ_bridge, torch\n"
        f"for keyframe in occ_bridge.keyframes({CLASSES}):\n"
        "    print('looking at', keyframe['token'])\n"
        "    print('UserWarning: old', file=sys.stderr)\n"
        "    covered = np.zeros((200, 200, 16), bool)\n"
        "    covered[7] = True\n"
        "    keyframe.answer(torch.full((200, 200, 16), 17), covered)\n"
    )
    teacher = opened(f"{sys.executable} {tmp_path / 'program.py'}")
    prediction = teacher.predict(frame(TOKEN))
    assert (prediction.voxel_log_probs_BXYZC.argmax(-1) == 17).all()
    assert prediction.covered_BXYZ.nonzero()[:, 1].unique().tolist() == [7]
    teacher.close()
    shown = capfd.readouterr()
    assert f"looking at {TOKEN}" in shown.out
    assert "UserWarning: old" in shown.err


def test_a_program_says_what_it_needs_and_what_it_is(tmp_path):
    weights = tmp_path / "mine.pth"
    weights.write_bytes(b"weights")
    teacher = opened(written(tmp_path, FREE, f"{CLASSES}, checkpoint={str(weights)!r}, history=2, lidar=True"))
    assert teacher.inputs == {"image_size": [32, 64], "history": 2, "lidar": True, "depth_stride": None}
    assert teacher.checkpoint_sha256 == sha256_of(weights)
    assert teacher.identity["declared"]["confidence"] == 0.9
    assert teacher.identity["command"].endswith("program.py")


@pytest.mark.parametrize(
    ("body", "declared", "told"),
    [
        (
            "raise KeyError('img_metas')",
            CLASSES,
            r"ended with exit code 1 before answering about keyframe a{32}.*img_m",
        ),
        ("os.kill(os.getpid(), 9)", CLASSES, "was ended by SIGKILL before answering"),
        ("os._exit(0)", CLASSES, "ended with exit code 0 before answering"),
        (
            "print('busy', file=sys.stderr); time.sleep(60)",
            CLASSES,
            r"waited 2 s for answering .* teacher\.timeout.*busy",
        ),
        ("return np.full((200, 200, 16), 3.5)", CLASSES, "keyframe a{32}: class ids are float32"),
        ("return np.zeros((200, 200, 16, 18), np.float16)", LOGITS, r"shape \(200, 200, 16, 18\): .* CXYZ, \(18, 200"),
        ("return np.full((18, 200, 200, 16), np.nan)", LOGITS, "logits hold NaN"),
        ("return np.zeros((2, 18, 200, 200, 16), np.float32)", LOGITS, "more than kind='logits' takes"),
        ("return np.full((200, 200, 16), 'car')", CLASSES, "the answer is <U3: give one of"),
        ("keyframe.answer(np.zeros(3, int)); keyframe.answer(np.zeros(3, int))", CLASSES, "shape|answered twice"),
    ],
)
def test_what_goes_wrong_ends_in_one_line_and_in_no_process(tmp_path, body, declared, told):
    before = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    with pytest.raises(InputError, match=told) as caught:
        opened(written(tmp_path, body, declared, before), timeout=2.0).predict(frame(TOKEN))
    assert "\n" not in str(caught.value)
    if "before" in told or "waited" in told:
        assert "what was dumped stays" in str(caught.value)
        assert ends(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("no-such-conda run", "there is no program 'no-such-conda'"),
        ("python 'unclosed", "No closing quotation"),
        (f"{sys.executable} -c 'pass'", r"ended with exit code 0 before asking for keyframes \(occ_bridge\.serve"),
        (f"{sys.executable} nowhere.py", "exit code 2 before .*can't open file"),
        (f"{sys.executable} -c 'import time; time.sleep(60)'", "waited 1 s for asking for keyframes"),
    ],
)
def test_a_program_that_never_asks(command, told):
    with pytest.raises(InputError, match=told):
        opened(command, timeout=1.0 if "sleep" in command else 30.0)


@pytest.mark.parametrize(
    ("declared", "before", "told"),
    [
        (CLASSES, "occ_bridge.PROTOCOL = 0", f"speaks version 0 of the protocol, this occ-dump version {PROTOCOL}: "),
        (CLASSES.replace('"ego"', '"lidar"'), "", "frame='lidar', but occ3d lies in the ego frame"),
        (CLASSES.replace(', frame="ego"', ""), "", "missing 1 required keyword-only argument: 'frame'"),
        (CLASSES.replace("0.9", "9"), "", "confidence=9: should be a probability"),
    ],
)
def test_what_is_declared_wrongly_is_refused_at_once(tmp_path, declared, before, told):
    with pytest.raises(InputError, match=told) as caught:
        opened(written(tmp_path, FREE, declared, before))
    assert "\n" not in str(caught.value)


def test_a_program_sees_the_gpu_of_its_rank_and_nothing_of_torchrun(monkeypatch, tmp_path):
    """Which variables it has it tells in place of its classes."""
    declared = CLASSES.replace('"occ3d", confidence', "dict(os.environ), confidence")
    command = written(tmp_path, FREE, declared)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")

    def seen(gpu):
        program = Program(command, gpu, 30.0)
        told = program.receive("")["declared"]["classes"]
        program.close()
        assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & told.keys()
        return told.get("CUDA_VISIBLE_DEVICES")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (seen(None), seen(1)) == (None, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8f1e")
    assert (seen(None), seen(0), seen(1)) == ("4,GPU-8f1e", "4", "GPU-8f1e")


def test_what_it_started_ends_with_it(tmp_path):
    """Workers that it left behind, too."""
    worker = f"{sys.executable} -c 'import time; time.sleep(600)'"
    before = (
        f"import shlex, subprocess\nworker = subprocess.Popen(shlex.split({worker!r}))\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(worker.pid))"
    )
    teacher = opened(written(tmp_path, FREE, before=before))
    teacher.close()
    assert ends(int((tmp_path / "pid").read_text()))


def test_a_keyframe_is_handed_over_as_it_is_known(workshop: Workshop, tmp_path):
    """Paths, matrices bit for bit, the past and decoded images, as a program gets them."""
    record = tmp_path / "seen.npz"
    body = (
        "cameras = {f'{name}/{key}': value for name, camera in keyframe['cameras'].items() "
        "for key, value in camera.items()}\n"
        "past = [earlier['token'] for earlier in keyframe['past']]\n"
        "shown = keyframe['past'][0]['cameras']['CAM_BACK']['image'] if past else 0\n"
        f"np.savez({str(record)!r}, **cameras, past=past, shown=shown, pose=keyframe['ego2global'], "
        "scan=keyframe['lidar'].get('path', ''), scene=keyframe['scene'], time=keyframe['timestamp'])\n" + FREE
    )
    teacher = opened(written(tmp_path, body, f"{CLASSES}, history=1, images=(32, 64)"))
    keyframes = load_index(workshop.folder / "data/demo", "v1.0-demo", tmp_path).keyframes("train")
    frames = FrameDataset(keyframes, labels=None, augmentation=None, seed=0, **teacher.inputs)
    asked = AskedFrames(frames, keyframes, teacher.read)[1]
    batch = AskedFrame(
        token=[asked.token],
        images=torch.from_numpy(asked.images)[None],
        intrinsics=torch.from_numpy(asked.intrinsics)[None],
        past=tuple(
            SimpleNamespace(
                images=torch.from_numpy(each.images)[None], intrinsics=torch.from_numpy(each.intrinsics)[None]
            )
            for each in asked.past
        ),
        given=[asked.given],
    )
    teacher.predict(batch)
    with np.load(record) as seen:
        for number, camera in enumerate(keyframes[1].cameras):
            for name in ("intrinsics", "cam2ego", "ego2global"):
                np.testing.assert_array_equal(seen[f"{camera.channel}/{name}"], getattr(camera, name))
            assert str(seen[f"{camera.channel}/path"]) == str(camera.path)
            image_HW3 = asked.images[number].transpose(1, 2, 0)
            np.testing.assert_array_equal(seen[f"{camera.channel}/image"], image_HW3)
            np.testing.assert_allclose(seen[f"{camera.channel}/image_intrinsics"], asked.intrinsics[number])
        back = [camera.channel for camera in keyframes[1].cameras].index("CAM_BACK")
        np.testing.assert_array_equal(seen["shown"], asked.past[0].images[back].transpose(1, 2, 0))
        np.testing.assert_array_equal(seen["pose"], keyframes[1].ego2global)
        assert seen["past"].tolist() == [keyframes[0].token]
        assert str(seen["scan"]) == ""  # it did not say that it reads scans
        assert (str(seen["scene"]), int(seen["time"])) == (keyframes[1].scene, keyframes[1].timestamp)


LABELS = """\
from pathlib import Path
root = Path(keyframe["cameras"]["CAM_FRONT"]["path"]).parents[2]
with open("asked.txt", "a") as file:
    file.write(keyframe["token"] + "\\n")
if Path("broken").exists() and len(Path("asked.txt").read_text().split()) > 3:
    raise RuntimeError("CUDA out of memory")
return np.load(str(root / "gts" / keyframe["scene"] / keyframe["token"] / "labels.npz"))["semantics"]"""
DUMP = ("gate.min_miou=1", "teacher=process", "teacher.name=mine", "store.path=stores/mine.zarr")


def test_a_dump_with_a_program_that_breaks_goes_on_with_what_is_left(copy: Workshop):
    command = "teacher.command=" + written(copy.folder, LABELS)
    (copy.folder / "broken").touch()
    ended = copy.run("occ-dump", *DUMP, command)
    *shown, line = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert line.startswith("occ-dump: error: teacher.command=")
    assert "ended with exit code 1 before answering about keyframe" in line
    assert line.endswith("| RuntimeError: CUDA out of memory")
    assert "RuntimeError: CUDA out of memory" in shown
    kept = TeacherStore(copy.folder / "stores/mine.zarr").present
    assert 0 < len(kept) < 6
    (copy.folder / "broken").unlink()
    (copy.folder / "asked.txt").unlink()
    assert "teacher mIoU 100.00" in copy.ok("occ-dump", *DUMP, command)
    asked = (copy.folder / "asked.txt").read_text().split()
    assert sorted(asked) == sorted(TeacherStore(copy.folder / "stores/mine.zarr").present - kept)
    line = copy.refused("occ-dump", *DUMP, command.replace("program.py", "./program.py"))
    assert "was dumped differently: config.command is" in line
    written(copy.folder, LABELS, CLASSES.replace("0.9", "0.8"))
    line = copy.refused("occ-dump", *DUMP, command)
    assert "config.declared.confidence is 0.9 there, 0.8 here" in line


def test_each_rank_has_a_program_of_its_own(copy: Workshop):
    body = LABELS.replace('keyframe["token"] + "\\n"', 'f"{os.getpid()}\\n"')
    ended = copy.launch(2, "occ-dump", *DUMP, "teacher.command=" + written(copy.folder, body))
    assert ended.returncode == 0, ended.stderr
    assert len(TeacherStore(copy.folder / "stores/mine.zarr").present) == 6
    assert len(Counter((copy.folder / "asked.txt").read_text().split())) == 2


def test_a_killed_dump_leaves_no_program_running(workshop: Workshop, tmp_path):
    pid = tmp_path / "pid"
    hang = f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    command = [*workshop.command("occ-dump", *DUMP[:3]), f"store.path={tmp_path}/s.zarr"]
    process = subprocess.Popen([*command, "teacher.command=" + written(tmp_path, hang)], cwd=workshop.folder)
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    shared = Path(Path(f"/proc/{pid.read_text()}/environ").read_text().partition("OCC_BRIDGE=")[2].split("\0")[0])
    assert shared.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ends(int(pid.read_text()))
    assert not shared.parent.exists()


@pytest.mark.parametrize(
    "path", [BRIDGE / "occ_bridge.py", *sorted(BRIDGE.glob("examples/*.py"))], ids=lambda path: path.name
)
def test_the_side_of_the_user_is_python_3_7(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 7))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([each.name for each in node.names] if isinstance(node, ast.Import) else [str(node.module)])
    }
    if path.parent == BRIDGE:
        assert imported - {*sys.stdlib_module_names} == {"numpy"}
    else:
        (answers,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        assert answers.end_lineno - answers.decorator_list[0].lineno < 10


OTHERS = ("python3.7", "python3.8", "pypy3", "python3.9")


@pytest.fixture(scope="session")
def other_python(tmp_path_factory) -> list[str]:
    """The words that start another, older Python that has NumPy."""
    packages = tmp_path_factory.mktemp("packages")
    for name in [shutil.which(name) for name in OTHERS]:
        if name is None or subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode:
            continue
        pip = [sys.executable, "-m", "pip", "--python", name, "install", "-q", "--target", str(packages), "numpy"]
        has = subprocess.run([name, "-c", "import numpy"], capture_output=True, check=False).returncode == 0
        if has or subprocess.run(pip, capture_output=True, check=False).returncode == 0:
            return [name] if has else ["env", f"PYTHONPATH={packages}:{BRIDGE}", name]
    pytest.skip(f"none of {', '.join(OTHERS)} is here with NumPy, or can get it")


def test_another_interpreter_teaches(other_python, tmp_path):
    words = [*other_python, written(tmp_path, FREE + " - (keyframe['token'] == 'b')", CLASSES).split()[1]]
    teacher = opened(" ".join(words))
    for token, found in (("a", 17), ("b", 16)):
        assert (teacher.predict(frame(token)).voxel_log_probs_BXYZC.argmax(-1) == found).all()
