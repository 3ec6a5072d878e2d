"""A teacher in its own environment answers occ-dump: this file, NumPy and Python 3.7 or later are all that it needs.

occ-dump starts the program (`teacher=process teacher.command="python my_teacher.py"`) and lets it import this file.

    import occ_bridge

    @occ_bridge.serve(kind="logits", axes="XYZC", grid="occ3d", frame="ego", classes="occ3d")
    def answer(keyframe):
        return model(keyframe["cameras"])  # (200, 200, 16, 18), NumPy or a torch tensor

The decorated function is called for each keyframe, until occ-dump has no more; a loop does the same:

    for keyframe in occ_bridge.keyframes(kind=..., axes=..., grid=..., frame=..., classes=...):
        keyframe.answer(model(keyframe["cameras"]))

What is declared:

    kind        "log_probs", "probs", "logits": one number per voxel and class; "classes": class ids of all voxels;
                "sparse": {"places": (N, 3) numbers of voxels, "classes": (N,)}, all others being free;
                "points": (Q, R, 3 + S), x, y, z in metres and a probability of each class but free, of R points of Q
                queries
    axes        of the array, in its order: "XYZC", "CXYZ" or any other order; without C where there are no channels.
                x looks forward, y left, z up in the ego frame; right, forward, up in that of the LiDAR.
                Of "sparse" and "points", the order of the columns of a place
    grid        "occ3d" or "surroundocc"
    frame       in which it lies: "ego" (of the keyframe, at the time of its LiDAR scan) or "lidar"
    classes     "occ3d", "surroundocc", or names in the order of channels or ids
    confidence  of "classes" and "sparse": how probable the class is that is named, such as 0.9
    points      of "points": a dict with count (at most), reach, threshold, most and power (docs/formulas.md 10.4)
    checkpoint  a file with the weights; the store records its SHA-256
    history     how many earlier keyframes of the scene a keyframe brings along
    lidar       True: it reads LiDAR scans
    images      (H, W): images come decoded, in this size

A keyframe is a dict: token, scene, timestamp (microseconds), ego2global, lidar ({path, columns, lidar2ego}; path and
the names of its columns with lidar=True; lidar2ego None where there is no LiDAR), cameras ({channel: {path, width,
height, intrinsics, cam2ego, ego2global}}, path None where the keyframe lacks one) and past (the earlier ones, the
latest first; at the start of a scene fewer, or none). With images, a camera also has image, uint8 (H, W, 3) RGB, and
image_intrinsics, of that image. Matrices are float64; cam2ego leads to the ego frame at the camera's own time, whose
pose is the camera's ego2global.

An answer may come with `covered`, bool, which voxels were modelled: `keyframe.answer(array, covered)`, or
`return array, covered`. What the program prints stays visible; an exception ends it, and occ-dump with it.
"""

import hashlib
import json
import mmap
import os
import socket
import struct
import sys

import numpy as np

PROTOCOL = 1
_ADDRESS = "OCC_BRIDGE"
_LENGTH = struct.Struct(">I")
_ALIGNED = 64
_DTYPES = ("float16", "float32", "uint8", "int16", "int32", "int64", "bool")
_ARRAYS = {"sparse": ("places", "classes"), "points": ("points",)}


def serve(**declared):
    """A decorator: the function answers keyframes, until occ-dump has no more; see the top of this file."""

    def decorate(function):
        for keyframe in keyframes(**declared):
            answer = function(keyframe)
            keyframe.answer(*(answer if isinstance(answer, tuple) else (answer,)))
        return function

    return decorate


def keyframes(
    *,
    kind,
    axes,
    grid,
    frame,
    classes,
    confidence=None,
    points=None,
    checkpoint=None,
    history=0,
    lidar=False,
    images=None,
):
    """The keyframes that are to be answered, one after the other; see the top of this file."""
    declared = dict(kind=kind, axes=axes, grid=grid, frame=frame, classes=classes)
    declared.update(confidence=confidence, points=points, history=history, lidar=lidar, images=images)
    declared.update(checkpoint_sha256=_sha256(checkpoint) if checkpoint else "")
    connection = _connect()
    _send(connection, {"protocol": PROTOCOL, "python": sys.version.split()[0], "declared": declared})
    accepted = _receive(connection)
    if accepted is None or "error" in accepted:
        sys.exit("occ_bridge: refused by occ-dump, which says why" if accepted else "occ_bridge: occ-dump has ended")
    memory = _Memory()
    while True:
        message = _receive(connection)
        if message is None:
            return
        keyframe = Keyframe(message, kind, memory, connection)
        yield keyframe
        if not keyframe.answered:
            raise RuntimeError(f"keyframe {keyframe['token']} was not answered")


class Keyframe(dict):
    """What is known of a keyframe, and the way to answer; see the top of this file."""

    def __init__(self, message, kind, memory, connection):
        super().__init__(json.loads(message["keyframe"]))
        self._answers, self._kind, self._memory, self._connection = message["answers"], kind, memory, connection
        self.answered = False
        for each in [self] + self["past"]:
            each["ego2global"] = np.array(each["ego2global"])
            if each["lidar"]["lidar2ego"] is not None:
                each["lidar"]["lidar2ego"] = np.array(each["lidar"]["lidar2ego"])
            for camera in each["cameras"].values():
                for name in ("intrinsics", "cam2ego", "ego2global"):
                    camera[name] = np.array(camera[name])
        if "images" in message:
            self._show(message["images"])

    def answer(self, array, covered=None):
        """Say what the teacher found: an array, or a dict of arrays for kind="sparse"."""
        if self.answered:
            raise RuntimeError(f"keyframe {self['token']} was answered twice")
        if self._kind == "sparse":
            arrays = {name: array[name] for name in _ARRAYS["sparse"]}
        else:
            arrays = {_ARRAYS.get(self._kind, ("voxels",))[0]: array}
        if covered is not None:
            arrays["covered"] = covered
        shared, at, listed = self._memory.of(self._answers), 0, []
        for name, values in arrays.items():
            values = values.detach() if hasattr(values, "detach") else np.asarray(values)
            shape, dtype = tuple(values.shape), _arrives_as(values)
            size = dtype.itemsize * int(np.prod(shape))
            if at + size > len(shared):
                raise ValueError(f"{name} is {dtype} {shape}, more than kind={self._kind!r} takes")
            _copy(values, np.ndarray(shape, dtype, shared, at))
            listed.append({"name": name, "dtype": dtype.name, "shape": shape, "offset": at})
            at += -(-size // _ALIGNED) * _ALIGNED
        self.answered = True
        _send(self._connection, {"token": self["token"], "arrays": listed})

    def _show(self, images):
        """Give each camera its image, a view of shared memory that holds until the next keyframe."""
        values = np.ndarray(images["shape"], np.uint8, self._memory.of(images))
        for frame, *of_frame in zip([self] + self["past"], values, images["intrinsics"]):
            for camera, image, intrinsics in zip(frame["cameras"].values(), *of_frame):
                camera["image"], camera["image_intrinsics"] = image.transpose(1, 2, 0), np.array(intrinsics)


class _Memory:
    """Memory that is shared with occ-dump, mapped once."""

    def __init__(self):
        self._mapped = {}

    def of(self, described):
        path = described["path"]
        if path not in self._mapped:
            with open(path, "r+b") as file:
                self._mapped[path] = mmap.mmap(file.fileno(), described["size"])
        return self._mapped[path]


def _arrives_as(values):
    """The type in which an array is handed over: its own, or single precision for what occ-dump does not take."""
    name = values.dtype.name if isinstance(values, np.ndarray) else str(values.dtype).replace("torch.", "")
    name = "float32" if name in ("float64", "bfloat16") else name
    if name not in _DTYPES:
        raise TypeError(f"the answer is {values.dtype}: give one of {', '.join(_DTYPES)}")
    return np.dtype(name)


def _copy(values, shared):
    """Write an array or a tensor, of whatever device, into shared memory: the only copy there is on either side."""
    if isinstance(values, np.ndarray):
        np.copyto(shared, values, casting="same_kind")
    else:
        sys.modules["torch"].from_numpy(shared).copy_(values)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _connect():
    if _ADDRESS not in os.environ:
        sys.exit("occ_bridge: occ-dump starts this program: teacher=process teacher.name=NAME teacher.command='...'")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.environ[_ADDRESS])
    return connection


def _send(connection, message):
    content = json.dumps(message).encode("utf-8")
    connection.sendall(_LENGTH.pack(len(content)) + content)


def _receive(connection):
    """The next message; None: the other side has closed."""
    length = _exactly(connection, _LENGTH.size)
    content = None if length is None else _exactly(connection, _LENGTH.unpack(length)[0])
    return None if content is None else json.loads(content.decode("utf-8"))


def _exactly(connection, count):
    content = bytearray()
    while len(content) < count:
        try:
            part = connection.recv(count - len(content))
        except ConnectionError:
            return None
        if not part:
            return None
        content += part
    return bytes(content)
