"""Kinds of values: texts, paths, numbers, choices; and what a node of a configuration is."""

from __future__ import annotations

import itertools
import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


def _place(path: str) -> str:
    """An absolute path, so that it means the same from every folder; `pkg://package/file` names a shipped file."""
    return path if path.startswith("pkg://") else os.path.abspath(os.path.expanduser(path))


def _store_place(address: str) -> str:
    """An absolute path, or the URL of an object store as it is."""
    scheme, there, rest = address.partition("://")
    if not there:
        return _place(address)
    if scheme == "file":
        return _place(rest)
    if scheme not in _OBJECT_STORES:
        raise ValueError(f"should be a path, or begin with {', '.join(f'{each}://' for each in _OBJECT_STORES)}")
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise ValueError("should hold no password and no query: credentials are those of the environment (AWS_...)")
    return address.rstrip("/")


def _source_place(path: str) -> str:
    return path if path.startswith("pkg://") else _store_place(path)


def _text(value: Any) -> Any:
    """Hydra reads `name=2024` as a number."""
    return str(value) if type(value) is int else value


def _weights(value: str) -> str:
    return value if value in ("wheel", "none") else _place(value)


def _file_or_none(value: str) -> str:
    return value if value == "none" else _place(value)


def _labels(value: Any) -> Any:
    if value is None or value == "openocc" or (isinstance(value, dict) and "_target_" in value):
        return value
    if isinstance(value, str) and value.rstrip("/").endswith(".zarr"):
        if "://" in value:
            raise ValueError("should lie on a local disk: occ-store do=convert store.path=... makes a copy there")
        return _place(value)
    raise ValueError("should be null, openocc, a teacher's store (*.zarr) or {_target_: MODULE.CLASS}")


def _no_folder(name: str) -> str:
    if name in (".", ".."):
        raise ValueError("should be a plain name")
    return name


def rising(edges: list[float]) -> list[float]:
    """The same, if each is above the one before."""
    if any(not low < high for low, high in itertools.pairwise(edges)):
        raise ValueError("should rise from one number to the next")
    return edges


def distinct(values: list[Any]) -> list[Any]:
    """The same, if none is there twice."""
    if len(set(values)) < len(values):
        raise ValueError("names one of them twice")
    return values


def _balance(value: Any) -> Any:
    if value != "log" and not (type(value) in (int, float) and 0 <= value <= 1):
        raise ValueError("should be 'log', or a power of 1 / frequency from 0 to 1, such as 0.5 (sqrt)")
    return value


def _threshold(value: Any) -> Any:
    by_name = value if isinstance(value, dict) else {"default": value}
    probable = all(type(each) in (int, float) and 0 <= each <= 1 for each in by_name.values())
    fits = by_name.get("precision") != 0 and len(by_name) == 1 if "precision" in by_name else "default" in by_name
    if not (probable and fits):
        raise ValueError(
            "should be a probability, or {default: a probability, CLASS: its own}, or {precision: a share above 0}"
        )
    return value


_OBJECT_STORES = ("s3", "gs", "az", "memory")
Text = Annotated[str, BeforeValidator(_text), StringConstraints(min_length=1)]
# becomes part of a file's name
Name = Annotated[Text, StringConstraints(pattern=r"^[^/\s\x00][^/\x00]*$"), AfterValidator(_no_folder)]
Place = Annotated[Text, AfterValidator(_place)]
Labels = Annotated[Any, AfterValidator(_labels)]
StorePlace = Annotated[Text, AfterValidator(_store_place)]
SourcePlace = Annotated[Text, AfterValidator(_source_place)]
FileOrNone = Annotated[Text, AfterValidator(_file_or_none)]
Weights = Annotated[str, AfterValidator(_weights)]
Split = Annotated[Text, StringConstraints(pattern=r"^\S+$")]
Splits = Annotated[list[Split], Field(min_length=1), AfterValidator(distinct)]
Signal = Annotated[Text, StringConstraints(pattern=r"^\w+(\.\w+)*$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Threshold = Annotated[Any, AfterValidator(_threshold)]
Size = Annotated[list[Count], Field(min_length=2, max_length=2)]
Interval = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(rising)]
Edges = Annotated[list[float], Field(min_length=2), AfterValidator(rising)]
Scales = Annotated[list[Literal[2, 4, 8]], Field(min_length=1), AfterValidator(distinct)]
Mask = Literal["camera", "lidar", "all"]
TaughtMask = Literal["camera", "lidar", "occupied", "all"]
Unlabelled = Literal["seen", "prior", "all"]
Balance = Annotated[Any, AfterValidator(_balance)]
BalanceBy = Literal["class", "mass"]
Confidence = Literal["none", "entropy", "agreement"]
TaughtFrames = Literal["unlabelled", "all"]
Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class Node(BaseModel):
    """A configuration node that holds what is declared and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StoreCache(Node):
    """`distill.store.cache.Cache`."""

    folder: Place
    gb: Positive


class Built(BaseModel):
    """A node that describes an object; see `BUILT` for what is known of its arguments."""

    model_config = ConfigDict(extra="allow", strict=True)
    target: Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)+$")] = Field(alias="_target_")


class Known(Node):
    """The arguments of an object of this project."""

    target: str = Field(alias="_target_")
