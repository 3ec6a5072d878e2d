"""Files of weights: read without running any code in them, and brought to the names of a network.

What others save is wrapped (`{"state_dict": ..., "meta": ...}`, `{"model": ..., "optimizer": ...}`) and named from
further out than the network that wants it (`module.backbone.conv1.weight`). Both are taken off when what remains has
exactly the network's names, and it is said; nothing is ever loaded in part.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill import ranks
from distill.errors import InputError

FAMILY = "occ-distill checkpoint"  # what `format` of this project's own checkpoints begins with
_SHOWN = 3


def read(file: Path, give: str) -> dict[str, Any]:
    """What a file of PyTorch or a `.safetensors` file holds, on the CPU; no code in it is run.

    Args:
        file: the file; its content decides which kind it is.
        give: what to do if it is none, for the message.

    Returns:
        the saved dict; of a `.safetensors` file its metadata and its tensors.

    Raises:
        InputError: no such file, damaged, or none of weights by name.
    """
    if not file.is_file():
        found = "a folder, not a file" if file.is_dir() else "no such file"
        raise InputError(f"{file}: {found}: {give}")
    try:
        with open(file, "rb") as stream:
            start = stream.read(9)
        content = _read_safetensors(file) if start[8:] == b"{" else _read_torch(file)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{file}: {_unreadable(file, start, error, give)}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: holds a {type(content).__name__}, no weights by name: save its state_dict(), or {give}"
        )
    return content


def _read_safetensors(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
        return {**(content.metadata() or {}), **tensors}


class _Inert(list):
    """Stands for any object or call that is not PyTorch's own: takes whatever it is given and does nothing."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]


class _Entries:
    """Stands for another's kind of dict, whose entries may be weights."""

    def __new__(cls, *_: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


def _read_torch(file: Path) -> Any:
    """The content of the file, with inert objects in place of all that only foreign code could restore."""
    stand_ins: dict[str, type] = {}
    while True:
        try:
            with (
                open(file, "rb") as stream,
                torch.serialization.safe_globals(list(stand_ins.values())),
                warnings.catch_warnings(action="ignore"),  # of TorchScript, which `_unreadable` says in our words
            ):
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            said = str(error)
            call = re.search(r"Unsupported global: GLOBAL ([\w.]+)", said)
            kind = call or re.search(r"Can only SETITEMS? .* but got <class '([\w.]+)'>", said)
            if kind is None:
                raise
            module, _, name = kind[1].rpartition(".")
            stand_in = type(name, (_Inert if call else _Entries,), {"__module__": module or "builtins"})
            place = f"{stand_in.__module__}.{name}"
            if place in stand_ins and stand_ins[place].__base__ is stand_in.__base__:
                raise
            stand_ins[place] = stand_in


def _unreadable(file: Path, start: bytes, error: Exception, give: str) -> str:
    said = str(error)
    if "Unsupported operand" in said and start.startswith((b"PK", b"\x80")):
        keep = (
            f"import torch; c = torch.load('{file}', weights_only=False); "
            "torch.save(c.get('state_dict', c.get('model', c)), 'weights.pth')"
        )
        return f'is pickled in another protocol than PyTorch\'s own: if you trust it, save it again: python -c "{keep}"'
    if "is blocked" in said:
        return f"calls {said.rpartition('GLOBAL ')[2].split()[0]}, as no file of weights should: do not use it"
    if "TorchScript" in said or "persistent_load" in said:
        return "holds a whole network with its code, no weights by name: save its state_dict()"
    kind = "safetensors" if isinstance(error, SafetensorError) else "PyTorch weights alone"
    return f"not a file of {kind}, or an incomplete one ({type(error).__name__}): {give}"


def weights_in(content: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """All weights by name in what a file holds, by the keys that lead to them; () where nothing wraps them."""

    def found(node: Mapping[Any, Any], place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
        named = {name: value for name, value in node.items() if isinstance(name, str)}
        weights = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if weights:
            yield place, weights
        for name, value in named.items():
            if isinstance(value, Mapping):
                yield from found(value, (*place, name))

    return dict(found(content, ()))


def held(content: Mapping[str, Any]) -> str:
    """What a file holds, in words: its weights with their first names, or its entries."""
    places = weights_in(content)
    if not places:
        return f"no weights by name, only {first_names(content)}"
    place = max(places, key=lambda place: len(places[place]))
    return f"{first_names(places[place])} of weights{f' under {_dotted(place)}' if place else ''}"


def first_names(names: Collection[Any]) -> str:
    """How many there are, and the first of them."""
    if not names:
        return "nothing"
    shown = ", ".join([str(name) for name in names][:_SHOWN] + ["..."] * (len(names) > _SHOWN))
    return f"{len(names)} name{'s' * (len(names) > 1)} ({shown})"


@dataclass(frozen=True)
class Fit:
    """Weights of a file under a network's names.

    Attributes:
        state: one tensor for each name of the network's.
        origin: the file and the place in it, for messages.
        taken: what was taken off and left out, a line for the user, or "".
    """

    state: dict[str, Tensor]
    origin: str
    taken: str

    def tell(self) -> None:
        """Say what was taken off, once for all ranks."""
        if self.taken and ranks.rank() == 0:
            print(self.taken, flush=True)


def fit(
    file: Path, content: Mapping[str, Any], expected: Mapping[str, Tensor], unused: Callable[[str], bool] | None
) -> Fit:
    """The weights in a file that have exactly a network's names once wrappings and one prefix are taken off.

    Shapes and values are left to `load_strictly`. The counters of batch normalisation, which old files lack, start from
    zero.

    Args:
        file: for messages.
        content: see `read`.
        expected: the network's own state.
        unused: None: everything the file names must be the network's. Otherwise for a backbone that is taken from a
            larger network: names beside a prefix are left out, and so are those under it for which this is true.

    Raises:
        InputError: no weights, or those of another network, or more than one that fit.
    """
    if str(content.get("format", "")).startswith(FAMILY):
        raise InputError(
            f"{file}: a checkpoint of this project, of a whole network: it belongs to checkpoint= of occ-eval, "
            "trainer.init= of occ-train-student, or teacher=checkpoint teacher.checkpoint= of occ-dump"
        )
    places = weights_in(content)
    if not places:
        raise InputError(f"{file}: holds {held(content)}: give a file with the network's state_dict")
    readings = [
        _Reading.of(place, prefix, weights)
        for place, weights in places.items()
        for prefix in _prefixes(weights, expected)
    ]
    complete = [reading for reading in readings if not reading.missing(expected)]
    if len(complete) > 1:
        raise InputError(_choose(file, complete))
    found = complete[0] if complete else _closest(readings, expected)
    differences = found.missing(expected) + found.unexpected(expected, unused)
    if differences:
        raise InputError(_foreign(found.origin(file), differences, places[found.place], expected))
    origin = found.origin(file)
    # all that may lack is a counter
    state = {
        name: found.state[name] if name in found.state else torch.zeros_like(value, device="cpu")
        for name, value in expected.items()
    }
    beside = f", and left out {first_names(found.beside)} beside them" if found.beside else ""
    return Fit(state, origin, f"{origin}: took {len(found.state)} tensors{beside}" if origin != str(file) else "")


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load `state` into `network`.

    Raises:
        InputError: they do not agree, see `check_agreement`.
    """
    check_agreement(state, network.state_dict(), origin)
    network.load_state_dict(state)


def check_agreement(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    """Check that every name and shape is the expected one, and every value finite.

    Args:
        state: weights to be loaded.
        expected: tensors of the right names, shapes and kinds of number; their values do not matter.
        origin: where `state` comes from, for messages.

    Raises:
        InputError: names the first differences, and the first names of both sides; or the first bad tensor.
    """
    differences = _missing(expected, state) + _unexpected(state, expected)
    differences += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if differences:
        raise InputError(_foreign(origin, differences, state, expected))
    _check_values(state, expected, origin)


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: the weights at `place`, named without `prefix`, and the names beside that prefix."""

    place: tuple[str, ...]
    prefix: str
    state: dict[str, Tensor]
    beside: list[str]

    @classmethod
    def of(cls, place: tuple[str, ...], prefix: str, weights: Mapping[str, Tensor]) -> _Reading:
        state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return cls(place, prefix, state, [name for name in weights if not name.startswith(prefix)])

    def origin(self, file: Path) -> str:
        how = [_dotted(self.place)] * bool(self.place) + [f"without the prefix '{self.prefix}'"] * bool(self.prefix)
        return ": ".join([str(file), *[", ".join(how)] * bool(how)])

    def missing(self, expected: Iterable[str]) -> list[str]:
        return _missing([name for name in expected if not name.endswith(".num_batches_tracked")], self.state)

    def unexpected(self, expected: Container[str], unused: Callable[[str], bool] | None) -> list[str]:
        if unused is None:
            return _unexpected([*self.state, *self.beside], expected)
        return _unexpected([name for name in self.state if not unused(name)], expected)


def _closest(readings: list[_Reading], expected: Mapping[str, Tensor]) -> _Reading:
    """The reading with most names of the network's, or the largest one as it is if no reading has half of them."""
    closest = max(readings, key=lambda reading: len(reading.state.keys() & expected.keys()))
    if 2 * len(closest.state.keys() & expected.keys()) >= len(expected):
        return closest
    return max((reading for reading in readings if not reading.prefix), key=lambda reading: len(reading.state))


def _prefixes(weights: Iterable[str], expected: Container[str]) -> list[str]:
    """An empty one, and all that stands before a name of the network's in a name of the file."""
    found = {"": None}
    for name in weights:
        found |= {name[: dot.end()]: None for dot in re.finditer(r"\.", name) if name[dot.end() :] in expected}
    return list(found)


def _missing(expected: Iterable[str], state: Container[str]) -> list[str]:
    return [f"{name} is missing" for name in expected if name not in state]


def _unexpected(state: Iterable[str], expected: Container[str]) -> list[str]:
    return [f"{name} is unexpected" for name in state if name not in expected]


def _foreign(origin: str, differences: list[str], state: Collection[str], expected: Collection[str]) -> str:
    return (
        f"{origin}: weights of another architecture, {len(differences)} differences "
        f"({'; '.join(differences[:_SHOWN])}); the file has {first_names(state)}, "
        f"the network {first_names(expected)}: give the file that belongs to this network"
    )


def _choose(file: Path, complete: list[_Reading]) -> str:
    first = complete[0]
    where = "; ".join(reading.origin(file).removeprefix(f"{file}: ") for reading in complete)
    keep = (
        f"import torch, pathlib; from distill.weights import read; c = read(pathlib.Path('{file}'), '')"
        f"{''.join(f'[{key!r}]' for key in first.place)}; "
        f"torch.save({{n: c[n] for n in c if n.startswith({first.prefix!r})}}, 'weights.pth')"
    )
    return (
        f"{file}: holds the network's names {len(complete)} times ({where}): keep those you mean, for example the "
        f'first with: python -c "{keep}"'
    )


def _check_values(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(
                f"{origin}: {name} is {value.dtype} instead of {expected[name].dtype}: give the original file"
            )
        if not value.float().isfinite().all():
            raise InputError(
                f"{origin}: {name} holds NaN or infinite values: the file is damaged, or its training has diverged; "
                "give another"
            )


def _dotted(place: tuple[str, ...]) -> str:
    return ".".join(place)
