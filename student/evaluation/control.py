"""The control of a student: a checkpoint that no teacher taught, and whether the two were trained alike otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from distill.checkpoint import Checkpoint
from distill.store import StoreIdentity
from student.evaluation.sources import CheckpointSource, Source, StoreSource
from student.identity import FREE_TO_CHANGE, MEANT, stores_of

_TRAINING = ("seed", "grid", "classes", "student", "objective", "trainer")  # of a configuration; data have an identity
# what chooses the epoch that is kept; and what is in no number
_IDLE = ("trainer.max_val_samples", "student.name", *FREE_TO_CHANGE)
_SHOWN = 12  # digits of a digest
_LENGTH = ("trainer.epochs", "trainer.batch_size", "trainer.max_samples", "data")  # what makes a run longer


class Arms(NamedTuple):
    """Who is compared.

    Attributes:
        student: a teacher taught it.
        control: none did.
        teacher: the student's, if it is among the sources.
    """

    student: CheckpointSource
    control: CheckpointSource
    teacher: Source | None


def find_arms(sources: Sequence[Source]) -> Arms | None:
    """The first student that a teacher taught beside the first that none did; None without both."""
    networks = [source for source in sources if isinstance(source, CheckpointSource)]
    student = next((source for source in networks if source.checkpoint.facts["teachers"]), None)
    if student is None:
        return None
    taught = [StoreIdentity.from_dict(store) for store in stores_of(student.checkpoint.facts)]
    teacher = next((source for source in sources if _taught(source, taught)), None)
    # a teacher learned from labels alone, too
    control = next((one for one in networks if not one.checkpoint.facts["teachers"] and not _taught(one, taught)), None)
    return None if control is None else Arms(student, control, teacher)


def _taught(source: Source, taught: Sequence[StoreIdentity]) -> bool:
    if isinstance(source, CheckpointSource):
        return source.checkpoint.sha256 in [store.checkpoint_sha256 for store in taught]
    return isinstance(source, StoreSource) and any(store.identity in taught for store in source.stores)


def unlike(student: Checkpoint, control: Checkpoint) -> list[str]:
    """In what they were not trained alike, besides the teacher: "trainer.batch_size 2 vs 4"."""
    found = _differences(_training(student), _training(control)) | _other_files(student, control)
    if control.config["trainer"].get("labelled_share") == 1:  # keyframes without labels are the teacher's to use
        found.pop("trainer.labelled_share", None)
    for teacher in student.facts["teachers"].values():  # terms that train a teacher are its own
        for term in teacher.get("terms", ()):
            found.pop(f"objective.terms.{term}", None)
    if found.keys() & set(_LENGTH):
        found = {"steps": (student.facts["step"], control.facts["step"]), **found}
    return [f"{key} {_text(own)} vs {_text(others)}" for key, (own, others) in found.items() if own != others]


def _training(checkpoint: Checkpoint) -> dict[str, Any]:
    data = checkpoint.facts["data"].get("train", "unknown")
    return {key: checkpoint.config.get(key) for key in _TRAINING} | {"data": data[:_SHOWN]}


def _other_files(student: Checkpoint, control: Checkpoint) -> dict[str, tuple[Any, Any]]:
    """Files that both began with are compared by what they hold, not by where they lay."""
    own, others = student.facts["files"], control.facts["files"]
    return {key: (own[key][:_SHOWN], others[key][:_SHOWN]) for key in own.keys() & others.keys()}


def _differences(own: Any, others: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> both values, where they differ; what one side has as a whole is named as a whole."""
    if key in _IDLE or own == others:
        return {}
    if not isinstance(own, dict) or not isinstance(others, dict):
        return {key: (own, others)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**own, **others}:
        found |= _differences(
            own.get(name, MEANT.get(name)), others.get(name, MEANT.get(name)), f"{key}.{name}" if key else name
        )
    return found


def _text(value: Any) -> str:
    return json.dumps(value).replace('"', "")
