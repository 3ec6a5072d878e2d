"""A network as one ONNX file: standard operators, shapes that may vary where the answer stays exact, and metadata."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from onnxscript import opset18 as op
from torch import nn

from distill.checkpoint import Checkpoint, code_version
from distill.errors import InputError
from distill.files import write_durably
from distill.networks.flashocc.network import FlashOcc
from distill.networks.published import Published
from student.export.graph import Graph
from student.export.int8 import NAME_SCOPES, TrainingFrames, quantised
from student.export.runtime import FORMAT

OPSET = 18  # the first that reduces by operators' inputs, which PyTorch's exporter writes
_LICENCE = "Apache-2.0"  # of the code


def write_onnx(
    origin: Checkpoint | Published, settings: DictConfig, file: Path, frames: TrainingFrames | None = None
) -> None:
    """Write the network with its averaged weights.

    Args:
        origin: the network.
        settings: `onnx` of conf/export.yaml.
        file: is there whole or not at all.
        frames: batches, for 8 bits.

    Raises:
        InputError: no graph of this network is known, or the file cannot be written.
    """
    inputs = origin.config["student"]["inputs"]
    size = (inputs["image_size"][0], inputs["image_size"][1])
    network = origin.network()
    graph = Graph(network, size, settings.pool, [str(name) for name in settings.outputs]).eval()
    model = _exported(graph, settings.batch, settings.cameras)
    facts = _facts(origin, network, graph, settings)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    if frames is not None:
        model = quantised(model, frames, settings.int8)
    onnx.checker.check_model(model, full_check=True)
    try:
        write_durably(file, model.SerializeToString())
    except OSError as error:
        raise InputError(f"{file}: cannot write it ({error.strerror}): choose another output=") from error


def _exported(graph: Graph, batch: int | None, cameras: int | None) -> onnx.ModelProto:
    # an axis of size 1 would be taken for a constant
    tensors = graph.example(batch or 2, cameras or 3)
    sizes: dict[int, Any] = {} if batch else {0: torch.export.Dim("batch")}
    rig = sizes | ({} if cameras else {1: torch.export.Dim("cameras")})
    told = tuple(rig if name in graph.geometry_names else sizes for name in graph.inputs[1:])
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            tuple(tensors.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes={"images": rig, "told": told},
            custom_translation_table={torch.ops.aten.softplus.default: _softplus},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # what else it tells of a node holds paths of this machine
        scopes = [entry for entry in node.metadata_props if entry.key == NAME_SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of every step."""
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _softplus(x, beta=1.0, threshold=20.0):  # type: ignore[no-untyped-def]
    """log(1 + e^x) by operators that ONNX Runtime has in vectors, four times as fast as its own; for beta 1 alone."""
    return op.Add(op.Relu(x), op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), op.CastLike(1.0, x))))


def _facts(origin: Checkpoint | Published, network: nn.Module, graph: Graph, settings: DictConfig) -> dict[str, Any]:
    """The metadata, JSON-ready."""
    config = origin.config
    grid, classes = (instantiate(config[name], _convert_="all") for name in ("grid", "classes"))
    key = network.convention.key if isinstance(network, FlashOcc) else None
    data = config.get("data", {})
    return {
        "format": FORMAT,
        "student": config["student"]["name"],
        "checkpoint_sha256": origin.sha256,
        "code": code_version(),
        "code_licence": _LICENCE,
        "weights_licence": settings.licence or "not stated",
        "trained_on": data.get("name", "what their authors say"),
        "grid": asdict(grid),
        "classes": {"names": classes.names, "colours": classes.colours, "free": classes.free},
        "inputs": config["student"]["inputs"],
        "key_camera": key,
        "pool": settings.pool,
        "lift": graph.parts.described(),
        "history": graph.history,
        "precision": "float32" if settings.int8 is None else f"int8, ranges of {settings.int8.frames} frames",
        "config": {"grid": config["grid"], "student": {k: config["student"][k] for k in ("name", "inputs")}},
    }
