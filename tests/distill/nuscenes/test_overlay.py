import numpy as np
import pytest
from nuscenes import NuScenes
from PIL import Image

from distill.nuscenes.index import load_index
from distill.nuscenes.overlay import IMAGE_SIZE, boxes_of, draw_overlay, main
from distill.nuscenes.points import project
from distill.nuscenes.tables import Tables


def test_box_stands_where_it_was_annotated(index):
    """The tiny world annotates a 4 x 2 x 2 m car 12 m in front of the recording car, turned by -30 degrees in ego."""
    keyframe = index.keyframe("alone")
    (box,) = boxes_of(Tables(index.root, index.version), keyframe)
    np.testing.assert_allclose(box.mean(axis=0), [12, 0, 1], atol=1e-6)
    np.testing.assert_allclose(np.ptp(box[:, 2]), 2)
    along = box[0] - box[4]
    np.testing.assert_allclose(np.abs(along), np.abs([4 * np.cos(np.pi / 6), 4 * np.sin(np.pi / 6), 0]), atol=1e-6)


def test_boxes_are_those_of_the_devkit(real_data, tmp_path):
    root = real_data / "nuscenes"
    nusc = NuScenes("v1.0-mini", str(root), verbose=False)
    for keyframe in load_index(root, "v1.0-mini", tmp_path).keyframes("all"):
        global2ego = np.linalg.inv(keyframe.ego2global)
        corners = [nusc.get_box(token).corners().T for token in nusc.get("sample", keyframe.token)["anns"]]
        expected = np.array(corners).reshape(-1, 8, 3) @ global2ego[:3, :3].T + global2ego[:3, 3]
        np.testing.assert_allclose(boxes_of(Tables(root, "v1.0-mini"), keyframe), expected, atol=1e-6)
        assert len(expected) > 10


def test_without_annotations_there_are_no_boxes(dataroot, tmp_path):
    (dataroot / "v1.0-tiny/sample_annotation.json").unlink()
    keyframe = load_index(dataroot, "v1.0-tiny", tmp_path).keyframe("alone")
    assert boxes_of(Tables(dataroot, "v1.0-tiny"), keyframe).shape == (0, 8, 3)


def test_boxes_are_drawn_at_their_projection(index):
    keyframe = index.keyframe("alone")
    box = np.array([[[x, y, z] for y, z in ((-1, 0), (1, 0), (1, 2), (-1, 2))] for x in (10, 14)]).reshape(1, 8, 3)
    without, drawn = (np.asarray(draw_overlay(keyframe, boxes)) for boxes in (box[:0], box))
    height, width = IMAGE_SIZE
    changed = (without != drawn).any(-1)
    front = changed[:height, width : 2 * width]  # CAM_FRONT is the middle of the upper row
    intrinsics = np.diag([800 / 250, 800 / 250, 1]) @ keyframe.cameras[1].intrinsics
    intrinsics[1, 2] -= 141 * 800 / 250 - 450
    u, v, _ = project(box[0], intrinsics[None], keyframe.cam2ego()[1:2])
    rows, columns = np.nonzero(front)
    for found, expected in ((columns, u), (rows, v)):
        assert (found.min(), found.max()) == pytest.approx((expected.min(), expected.max()), abs=1.5)
    assert changed.sum() == front.sum()


def test_box_beside_the_camera_is_cut_at_the_image_plane(index):
    around = np.array([[[x, y, z] for y, z in ((-3, 0), (3, 0), (3, 3), (-3, 3))] for x in (-5, 8)], float)
    sheet = np.asarray(draw_overlay(index.keyframe("alone"), around.reshape(1, 8, 3)))
    assert np.isfinite(sheet).all()
    assert sheet.shape == (2 * IMAGE_SIZE[0], 3 * IMAGE_SIZE[1], 3)


def test_command(index, tmp_path, monkeypatch, capsys):
    def run(token, out):
        monkeypatch.setattr("sys.argv", ["overlay", str(index.root), index.version, token, str(out)])
        main()

    run("late", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (3 * IMAGE_SIZE[1], 2 * IMAGE_SIZE[0])
    for token, out, message in (("nobody", "none.png", "no keyframe 'nobody'"), ("late", "none.text", "none.text")):
        with pytest.raises(SystemExit) as ended:
            run(token, tmp_path / out)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("overlay: error: ") and message in line
