"""What reaches OPUS from the files: upstream's pictures byte for byte, its frames and its projections."""

from __future__ import annotations

import zlib

import numpy as np
import opus
import pytest
import torch
from PIL import Image

from distill import rigid
from distill.frame import stack
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import Keyframes
from distill.nuscenes.keyframe import Camera, Keyframe

SIZE = (256, 704)


class Infos(Keyframes):
    """Upstream's records as keyframes; without a folder of pictures they are black."""

    def __init__(self, infos, root):
        self.all = [keyframe(info, root) for info in infos]

    def __len__(self):
        return len(self.all)

    def __getitem__(self, item):
        return self.all[item]

    def before(self, i, n):
        scene = self.all[i].scene
        return [each for each in self.all[:i][::-1] if each.scene == scene][:n]


def keyframe(info, root):
    cameras = []
    for name in opus.CAMERAS:
        camera, camera2global = info["cams"][name], np.eye(4)
        camera2global[:3, :3] = camera["sensor2global_rotation"].T  # for row vectors
        camera2global[:3, 3] = camera["sensor2global_translation"]
        path = None if root is None else root / camera["data_path"].replace("/", "_")
        cameras.append(Camera(name, path, 1600, 900, camera["cam_intrinsic"], camera2global, np.eye(4)))

    poses = (
        rigid.from_quaternion(info[f"{name}_rotation"], info[f"{name}_translation"])
        for name in ("lidar2ego", "ego2global")
    )
    lidar2ego, ego2global = poses
    return Keyframe(
        info["token"], info["scene_name"], info["timestamp"], "", "", tuple(cameras), None, 5, lidar2ego, ego2global
    )


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "fixtures/opus"
    return np.load(folder / "ref_pipeline.npz"), opus.filler(folder)


@pytest.mark.parametrize("number", [0, 2, 4, 5, 6])
def test_frames_and_projections_are_upstreams(golden, number):
    numbers, detfill = golden
    infos = Infos(detfill.infos(0), None)
    frame = FrameDataset(infos, SIZE, None, False, None, None, 0, bicubic=True, history=7)[number]
    frames = [frame, *frame.past]
    names = {info["token"]: info for info in detfill.infos(0)}
    used = [names[each.token]["cams"][camera]["data_path"] for each in frames for camera in opus.CAMERAS]
    assert used == numbers[f"{number}.filename"].tolist()
    batch = stack([frame])
    found = opus.small(history=7).ego2image(batch)[0].flatten(0, 1).double()
    expected = torch.from_numpy(numbers[f"{number}.occ2img"]).double()
    places = torch.rand(2000, 4, dtype=torch.float64) * torch.tensor([80, 80, 6.4, 0]) + torch.tensor([-40, -40, -1, 1])
    ours, theirs = (torch.einsum("nij,pj->npi", matrix, places) for matrix in (found, expected))
    ahead = theirs[..., 2] > 1
    apart = ours[..., :2] / ours[..., 2:3] - theirs[..., :2] / theirs[..., 2:3]
    seen = (theirs[..., :2] / theirs[..., 2:3]).abs().amax(-1) < 1000
    assert apart[ahead & seen].abs().max() < 1e-3


def test_pictures_are_upstreams_byte_for_byte(golden, tmp_path):
    """Of the present and one keyframe before it; red tells pictures apart, so that their order is that, too."""
    numbers, detfill = golden
    names = numbers["4.filename"].tolist()
    for name in names[:12]:
        picture = Image.fromarray(detfill.photo(numbers["picture_order"].tolist().index(name), 0))
        picture.save(tmp_path / name.replace("/", "_"), compress_level=0)
    infos = Infos(detfill.infos(0), tmp_path)
    frame = FrameDataset(infos, SIZE, None, False, None, None, 0, bicubic=True, history=1)[4]
    images = np.concatenate([frame.images, frame.past[0].images])[:, ::-1]  # theirs are B, G, R
    assert [zlib.crc32(np.ascontiguousarray(image)) for image in images] == numbers["4.crc32"][:12].tolist()


def test_pictures_of_the_past_are_decoded_once(golden, tmp_path, monkeypatch):
    _, detfill = golden
    infos = Infos(detfill.infos(0), None)
    decoded = []
    frames = FrameDataset(infos, SIZE, None, False, None, None, 0, bicubic=True, history=3)
    look = frames._look
    monkeypatch.setattr(
        frames, "_look", lambda keyframe, transform: decoded.append(keyframe.token) or look(keyframe, transform)
    )
    for number in range(5):
        frames[number]
    assert decoded == [f"tok0_{number}" for number in range(5)]
    assert len(frames._recent) <= 4
