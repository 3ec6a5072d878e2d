import numpy as np
import pytest
from PIL import Image

from distill.nuscenes.devkit import open_devkit
from distill.nuscenes.overlay import IMAGE_SIZE, boxes_of, draw_overlay, main
from distill.nuscenes.points import project


def test_box_stands_where_it_was_annotated(index):
    """The tiny world annotates a 4 x 2 x 2 m car 12 m in front of the recording car, turned by -30 degrees in ego."""
    keyframe = index.keyframe("alone")
    (box,) = boxes_of(open_devkit(index.root, index.version), keyframe)
    np.testing.assert_allclose(box.mean(axis=0), [12, 0, 1], atol=1e-6)
    np.testing.assert_allclose(np.ptp(box[:, 2]), 2)
    along = box[0] - box[4]
    np.testing.assert_allclose(np.abs(along), np.abs([4 * np.cos(np.pi / 6), 4 * np.sin(np.pi / 6), 0]), atol=1e-6)


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


def test_command(index, tmp_path, monkeypatch):
    def run(token, out):
        monkeypatch.setattr("sys.argv", ["overlay", str(index.root), index.version, token, str(out)])
        main()

    run("late", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (3 * IMAGE_SIZE[1], 2 * IMAGE_SIZE[0])
    with pytest.raises(SystemExit, match="overlay: error: no keyframe 'nobody'"):
        run("nobody", tmp_path / "none.png")
