"""A scene as a car meets it: an ONNX file of occ-export on ONNX Runtime alone, keyframe by keyframe, drawn as it goes.

python examples/realtime/realtime.py FILE.onnx DATAROOT VERSION SCENE [--rate 12] [--out seen] [--live]

Needs numpy, pillow and onnxruntime, no PyTorch; with rerun-sdk it is seen in 3D, too. Copy what you need.
"""

import argparse
import json
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

rerun = __import__("rerun") if find_spec("rerun") else None  # without it, bev.gif alone


def pose(record):
    """A nuScenes translation and rotation (w, x, y, z), float64 (4, 4)."""
    w, x, y, z = np.array(record["rotation"]) / np.linalg.norm(record["rotation"])
    turn, matrix = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.eye(4)
    matrix[:3, :3] += 2 * w * turn + 2 * turn @ turn
    matrix[:3, 3] = record["translation"]
    return matrix


class Scene:
    """Keyframes in the order of time; the ego frame is that of the LiDAR's time, or of `key_camera`'s (FlashOcc's)."""

    def __init__(self, root, version, name, image_size, key_camera):
        self.root, self.size, self.reference = root, image_size, key_camera or "LIDAR_TOP"
        names = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")
        tables = {table: json.loads((root / version / f"{table}.json").read_text()) for table in names}
        known = {scene["name"]: scene["token"] for scene in tables["scene"]}
        if name not in known:
            raise SystemExit(f"no scene {name} in {root / version}: it has {', '.join(known)}")
        self.sensors, self.poses, channels = ({row["token"]: row for row in tables[table]} for table in names[3:])
        self.channel = {token: channels[row["sensor_token"]]["channel"] for token, row in self.sensors.items()}
        samples = sorted(tables["sample"], key=lambda row: row["timestamp"])
        self.tokens = [row["token"] for row in samples if row["scene_token"] == known[name]]
        self.data = defaultdict(dict)
        for row in filter(lambda row: row["is_key_frame"], tables["sample_data"]):
            self.data[row["sample_token"]][self.channel[row["calibrated_sensor_token"]]] = row

    def read(self, token):
        """Images uint8 (1, N, 3, H, W), intrinsics and cam2ego of a keyframe, and its ego frame in the world."""
        data = self.data[token]
        ego2global = pose(self.poses[data[self.reference]["ego_pose_token"]])
        found = [self.camera(row, ego2global) for channel, row in data.items() if channel.startswith("CAM")]
        images, lenses, places = (np.stack(part)[None] for part in zip(*found, strict=True))
        return {"images": images, "intrinsics": np.float32(lenses), "cam2ego": np.float32(places)}, ego2global

    def camera(self, row, ego2global):
        """An image at the graph's size: the source fills the width, its upper rows are cut off."""
        sensor, (height, width) = self.sensors[row["calibrated_sensor_token"]], self.size
        cut = (scale := width / row["width"]) * row["height"] - height
        with Image.open(self.root / row["filename"]) as file:
            box = (0, cut / scale, row["width"], row["height"])
            image = np.asarray(file.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, box=box))
        lens = np.array([[scale, 0, 0], [0, scale, -cut], [0, 0, 1]]) @ np.array(sensor["camera_intrinsic"])
        place = np.linalg.inv(ego2global) @ pose(self.poses[row["ego_pose_token"]]) @ pose(sensor)
        return image.transpose(2, 0, 1), lens, place


class Student:
    """The ONNX file, and what it remembers."""

    def __init__(self, file, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        told = self.session.get_modelmeta().custom_metadata_map
        self.facts = {name: json.loads(value) for name, value in told.items() if "occ-distill" in told["format"]}
        if not self.facts or self.facts["pool"] != "inside" or self.facts["history"] > 1:
            raise SystemExit(
                f"{file}: want a file of occ-export, onnx.pool=inside, with a past of one keyframe at most"
            )
        self.outputs = [output.name for output in self.session.get_outputs() if output.name != "logits"]
        past = [each.shape for each in self.session.get_inputs() if each.name == "past"]
        self.past = np.zeros((1, *past[0][1:]), np.float32) if past else None
        self.was = None  # its ego frame in the world, when it looked last

    def look(self, feeds, ego2global):
        """Class ids, uint8 (X, Y, Z)."""
        if self.past is not None:
            moved = np.eye(4) if self.was is None else np.linalg.inv(ego2global) @ self.was
            feeds = feeds | {"past": self.past, "ego2present": np.float32(moved)[None, None]}
            feeds["remembered"] = np.array([[self.was is not None]])
        classes, *bev = self.session.run(self.outputs, feeds)
        if bev:
            self.past, self.was = bev[0][:, None], ego2global
        return classes[0]


def from_above(classes_XYZ, colours, free):
    """The highest occupied voxel of every column, RGB, x up and y left."""
    occupied = classes_XYZ != free
    top = classes_XYZ.shape[2] - 1 - occupied[..., ::-1].argmax(-1)  # of an empty column some free voxel
    return colours[np.take_along_axis(classes_XYZ, top[..., None], 2)[::-1, ::-1, 0]]


def dropped(seconds, rate):
    """How many images at this rate are never looked at: who is free again takes the newest."""
    now, image = 0.0, 0
    for busy in seconds:
        now = max(now, image / rate) + busy
        image = max(image + 1, int(now * rate))
    return f"{image - len(seconds)} of {image} are dropped"


def main():
    """Run through the scene; say how long it took and what a camera at this rate would have lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in {"file": Path, "root": Path, "version": str, "scene": str}.items():
        parser.add_argument(name, type=kind)
    parser.add_argument("--rate", type=float, default=12.0, help="of the cameras, Hz")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--out", type=Path, default=Path("seen"))
    parser.add_argument("--live", action="store_true", help="open rerun's viewer")
    given = parser.parse_args()
    student = Student(given.file, given.threads)
    facts, grid = student.facts, student.facts["grid"]
    scene = Scene(given.root, given.version, given.scene, facts["inputs"]["image_size"], facts["key_camera"])
    colours, free = np.uint8(facts["classes"]["colours"]), facts["classes"]["free"]
    given.out.mkdir(parents=True, exist_ok=True)
    if rerun:
        rerun.init("occ-distill", spawn=given.live)
        _ = given.live or rerun.save(given.out / "scene.rrd")
    student.look(*scene.read(scene.tokens[0]))  # the first call takes longer
    student.was, times, pictures = None, [], []
    for token in scene.tokens:
        feeds, ego2global = scene.read(token)
        start, classes_XYZ = time.perf_counter(), student.look(feeds, ego2global)
        times.append(time.perf_counter() - start)
        pictures.append(Image.fromarray(from_above(classes_XYZ, colours, free)).resize((600, 600), 0))
        if rerun:
            centres = np.array(grid["lower"]) + (np.argwhere(classes_XYZ != free) + 0.5) * grid["voxel_size"]
            rerun.log("bev", rerun.Image(np.asarray(pictures[-1])))
            rerun.log("voxels", rerun.Points3D(centres, colors=colours[classes_XYZ[classes_XYZ != free]], radii=0.2))
    pictures[0].save(given.out / "bev.gif", save_all=True, append_images=pictures[1:], duration=500, loop=0)
    p50, p95 = 1e3 * np.percentile(times, (50, 95))
    print(f"{len(times)} frames: p50 {p50:.0f} ms, p95 {p95:.0f} ms; at {given.rate:g} Hz {dropped(times, given.rate)}")


if __name__ == "__main__":
    main()
