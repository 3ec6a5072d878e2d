"""The report of an evaluation as one HTML file that needs nothing else: no network, no folder beside it.

`page.html` is its jinja2 template; `page.css`, `page.js` and `page.voxels.js` (the 3D views) are written into it, and
so are pictures and voxels.
Letters: X Y Z voxel axes, C channels or columns, H W pixel rows and columns.
"""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.pictures.view import FIELD_OF_VIEW, View
from distill.pictures.voxels import EGO_CAR
from student.evaluation import page_tables

HERE = Path(__file__).parent
JPEG_QUALITY = 80
FLOOR_CELL = 10.0  # metres between the lines of the floor, about


@dataclass(frozen=True)
class KeyframePictures:
    """What is shown of one keyframe.

    Attributes:
        title: why it is shown: "best", "median", "worst", "by token".
        token: sample token.
        scene: scene name.
        miou: source -> mIoU of this keyframe, percent; NaN when nothing was scored.
        cameras: channel -> RGB uint8 (H, W, 3).
        overlays: "ground truth" and each source -> the same, in this order, with voxels drawn in.
        bev: the same keys -> RGB uint8, forward up.
        volumes: the same keys -> class ids, uint8 (X, Y, Z) on the grid.
        mask_XYZ: bool, the voxels that are scored.
    """

    title: str
    token: str
    scene: str
    miou: dict[str, float]
    cameras: dict[str, np.ndarray]
    overlays: dict[str, list[np.ndarray]]
    bev: dict[str, np.ndarray]
    volumes: dict[str, np.ndarray]
    mask_XYZ: np.ndarray


def write_page(
    path: Path, results: dict[str, Any], classes: ClassSet, grid: VoxelGrid, pictures: list[KeyframePictures]
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        results: what metrics.json holds: `scored`, what was scored, and `sources`, one to six sources by name, whose
            numbers are compared with those of the first; where a student has a control among them, `verdict`.
        classes, grid: of labels and predictions.
        pictures: of some keyframes; may be empty.

    Raises:
        InputError: the file cannot be written.
    """
    sources = results["sources"]
    view = View(grid)
    page = (
        _environment()
        .get_template("page.html")
        .render(
            scored=results["scored"],
            sources=sources,
            verdict=page_tables.verdict(results.get("verdict")),
            headline=page_tables.headline(sources),
            per_class=page_tables.per_class(sources, results["scored"]["convention"]),
            bands=page_tables.bands(sources),
            confusion=page_tables.confusion(sources, results["scored"]["classes"]),
            reliability=page_tables.reliability(sources),
            cost=page_tables.cost(sources),
            robustness=page_tables.robustness(sources),
            colours=dict(
                zip(classes.names, ("rgb({}, {}, {})".format(*colour) for colour in classes.colours), strict=True)
            ),
            free=classes.names[classes.free],
            keyframes=[_keyframe(picture, view) for picture in pictures],
            scene=_scene(view, classes),
            css=(HERE / "page.css").read_text(encoding="utf-8"),
            js="\n".join((HERE / name).read_text(encoding="utf-8") for name in ("page.voxels.js", "page.js")),
        )
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error}): choose another output=") from error


def encode_volume(array_XYZ: np.ndarray) -> str:
    """Bytes of a uint8 or bool array in the order x, y, z (z fastest), deflated (zlib), in base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array_XYZ, dtype=np.uint8).tobytes(), 9)).decode()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": page_tables.number,
        "signed": page_tables.signed,
        "fact": page_tables.fact,
        "words": lambda name: name.replace("_", " "),
    }
    return environment


def _keyframe(picture: KeyframePictures, view: View) -> dict[str, Any]:
    """A keyframe as the template takes it: pictures as data URIs, voxels as `encode_volume` makes them."""
    names = [channel.removeprefix("CAM_").replace("_", " ").lower() for channel in picture.cameras]
    columns = [list(picture.cameras.values()), *picture.overlays.values()]
    return {
        "title": picture.title,
        "token": picture.token,
        "scene": picture.scene,
        "miou": picture.miou,
        "keys": list(picture.volumes),
        "cameras": [
            {"name": name, "pictures": [_data_uri(column[place], "jpeg") for column in columns]}
            for place, name in enumerate(names)
        ],
        "bev": {key: _data_uri(pixels, "png") for key, pixels in picture.bev.items()},
        "volumes": [encode_volume(view.turned(volume)) for volume in picture.volumes.values()],
        "mask": encode_volume(view.turned(picture.mask_XYZ)),
    }


def _scene(view: View, classes: ClassSet) -> dict[str, Any]:
    """What the 3D views draw around the voxels, metres in the turned grid: x forward, y left, z up."""
    grid = view.grid
    lower, upper = np.array(grid.lower), np.array(grid.upper)
    cells = np.round((upper - lower)[:2] / FLOOR_CELL).astype(int)
    return {
        "shape": grid.shape,
        "lower": grid.lower,
        "voxel_size": grid.voxel_size,
        "palette": classes.colours,
        "names": [name.replace("_", " ") for name in classes.names],
        "free": classes.free,
        "floor": cells.tolist(),
        "car": [
            {"lower": (near + view.ego).tolist(), "size": np.subtract(far, near).tolist(), "colour": colour}
            for near, far, colour in EGO_CAR
        ],
        "eye": view.eye.tolist(),
        "target": view.target.tolist(),
        "field_of_view": FIELD_OF_VIEW,
    }


def _data_uri(pixels_HW3: np.ndarray, kind: str) -> str:
    stream = io.BytesIO()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if kind == "jpeg" else {"optimize": True}
    Image.fromarray(pixels_HW3).save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
