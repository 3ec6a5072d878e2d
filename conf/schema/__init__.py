"""What every value of the programs may be: names, types, ranges and choices. Defaults stand in the YAML files.

A node with a `_target_` of this project is checked by the class of `BUILT`, wherever it stands; one of a user's own is
left to its constructor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from conf.schema import data, networks, programs, teachers, terms
from conf.schema.programs import PROGRAMS

MISSING = "???"  # what OmegaConf leaves where a value must be given
BUILT = {**data.BUILT, **networks.BUILT, **terms.BUILT, **teachers.BUILT, **programs.BUILT}


def checked(program: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration with absolute paths, and what is wrong with it, a line per value.

    Args:
        program: name of the YAML file.
        config: resolved; `MISSING` stands for what was not given.
    """
    problems = [f"{key} must be given: {key}=..." for key in _not_given(config)]
    if problems:
        return config, problems
    config = _check_built(_check_node(PROGRAMS[program], config, "", problems), "", problems)
    if not problems and "student" in config:
        student = config["student"]
        problems += [*_whole_cells(student), *_depth_of_proposals(student), *_for_flashocc(student)]
        problems += _something_to_minimise(config)
    # the weight of a term is looked at as that of any term, and as its own
    return config, list(dict.fromkeys(problems))


def _whole_cells(student: dict[str, Any]) -> Iterator[str]:
    """What is wrong between the values of a student, each of which is right."""
    encoder = student["network"].get("encoder", {})
    coarsest = 32 if encoder.get("_target_") == "distill.networks.flashocc.encoder.ImageEncoder" else 1
    stride = max([2 ** (level + 1) for level in encoder.get("levels", [])], default=coarsest)
    size = student["inputs"]["image_size"]
    if any(side % stride for side in size):
        yield f"student.inputs.image_size={size}: should be multiples of {stride}, the stride of the network"


def _depth_of_proposals(student: dict[str, Any]) -> Iterator[str]:
    stage = student["network"].get("proposals")
    if isinstance(stage, dict) and stage.get("depth", MISSING) is None and not student["inputs"]["lidar"]:
        yield "student.network.proposals.depth=null: depth is that of the LiDAR, then: set student.inputs.lidar=true"


def _for_flashocc(student: dict[str, Any]) -> Iterator[str]:
    kind, inputs = student["network"].get("_target_", ""), student["inputs"]
    if kind.startswith("distill.networks.flashocc.") and not inputs.get("calibration"):
        yield "student.inputs.calibration=false: FlashOcc is told its cameras part by part: set it to true"
    if kind.endswith(".FlashOccStereo") and inputs["history"] < 2:
        yield f"student.inputs.history={inputs['history']}: FlashOcc M2 looks at 2 earlier keyframes: set it to 2"


def _something_to_minimise(config: dict[str, Any]) -> Iterator[str]:
    supervised, distilled = config["objective"]["terms"], config["kd"]["terms"]
    twice = [name for name in supervised if name in distilled]
    if twice:
        yield f"objective.terms.{twice[0]}: kd={config['kd']['name']} has a term of this name, too: call it otherwise"
    if distilled and not any(term["weight"] for term in distilled.values()):
        yield f"kd={config['kd']['name']}: all weights are 0: kd=none trains without a teacher"
    elif not any(term["weight"] for term in [*supervised.values(), *distilled.values()]):
        yield f"objective.terms: all weights are 0, and kd={config['kd']['name']} adds none: there is nothing to learn"


def _not_given(node: Any, key: str = "") -> Iterator[str]:
    if node == MISSING:
        yield key
    for name, child in _children(node):
        yield from _not_given(child, f"{key}.{name}" if key else str(name))


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict | list):
        yield from node.items() if isinstance(node, dict) else enumerate(node)


def _check_node(kind: type[BaseModel], node: dict[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    try:
        return kind.model_validate(node).model_dump(by_alias=True, exclude_unset=True)
    except ValidationError as error:
        problems += dict.fromkeys(_problem(key, found) for found in error.errors())
        return node


def _check_built(node: Any, key: str, problems: list[str]) -> Any:
    """`node` with every object of this project below it checked, innermost first."""
    if not isinstance(node, dict | list):
        return node
    children = {
        name: _check_built(child, f"{key}.{name}" if key else str(name), problems) for name, child in _children(node)
    }
    if isinstance(node, list):
        return list(children.values())
    kind = BUILT.get(node.get("_target_", ""))
    return children if kind is None else _check_node(kind, children, key, problems)


def _problem(key: str, found: ErrorDetails) -> str:
    """One line about one value."""
    name = ".".join([key] * bool(key) + [str(part) for part in found["loc"]])
    if found["type"] == "extra_forbidden":
        return f"{name}: there is no such value"
    if found["type"] == "missing":
        return f"{name}: it must be given"
    said = found["msg"].removeprefix("Value error, ").replace("Input should", "should")
    said = said.replace("True, False", "true, false")
    if found["type"] in ("string_type", "string_pattern_mismatch"):
        said = _TEXTS.get(name.rpartition(".")[2], said if found["type"] == "string_type" else "should be a plain name")
    if found["type"] == "list_type" and isinstance(found["input"], str):
        said = f"should be a list: {name}=[{found['input']}]"
    if found["type"] == "model_type":
        said = "should be a group of values with a _target_, not one value"
    if found["input"] == "":
        said = "should not be empty"
    shown = "" if isinstance(found["input"], dict) else f"={_SECRET.sub(_PUBLIC, str(found['input']))}"
    if isinstance(found["input"], str) and found["type"] in ("int_type", "float_type", "bool_type"):
        shown = f'="{found["input"]}"'  # "3" is no number
    for python, yaml in (("=None", "=null"), ("=True", "=true"), ("=False", "=false")):
        shown = yaml if shown == python else shown
    return f"{name}{shown}: {said}"


# what of a URL may hold a password is not repeated
_PUBLIC = r"\1\2"
_SECRET = re.compile(r"(://)(?:[^/]*@)?([^?]*)(?:\?.*)?")
_TEXTS = {
    "device": "should be auto, cpu, cuda (the first GPU) or cuda:N (GPU number N, from 0)",
    "weights": "must be given: none, or a local file (.pth or .safetensors) with weights of that timm model",
    "_target_": "should be a class or function with its module: package.module.Name",
}
