"""The stores that taught a student: they are scored beside it where they are there, otherwise it is said why not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill.checkpoint import Checkpoint
from distill.classes import ClassSet
from distill.errors import Unreachable
from distill.grids import VoxelGrid
from distill.store import StoreIdentity, TeacherStore
from distill.store.address import place_of
from distill.store.cache import Cache
from student.evaluation.sources import StoreSource
from student.identity import stores_of


def find_teacher(
    student: Checkpoint,
    paths: Sequence[str],
    tokens: Sequence[str],
    grid: VoxelGrid,
    classes: ClassSet,
    device: torch.device,
    cache: Cache | None,
) -> StoreSource | None:
    """The teacher of a student, if its stores hold all that is scored.

    Args:
        student: its checkpoint knows who taught it.
        paths: of the stores to look at.
        tokens: of the keyframes that are scored.
        grid, classes: of the student.
        device: for rendering Gaussians.
        cache: of stores in object stores; None: none.
    """
    stores = _stores_that_taught(student, paths, cache)
    if not stores:
        return None
    teacher = StoreSource("teacher", stores, grid, classes, device)
    missing = len(teacher.missing(tokens))
    if missing:
        print(f"{teacher.path} lacks {missing} of {len(tokens)} keyframes: the student is scored alone")
        return None
    return teacher


def _stores_that_taught(student: Checkpoint, paths: Sequence[str], cache: Cache | None) -> list[TeacherStore]:
    if not stores_of(student.facts):
        print("the student was trained without a teacher: it is scored alone")
        return []
    try:
        there = [TeacherStore(path, cache) for path in paths if not place_of(path).empty()]
    except Unreachable as error:
        print(f"{error}: the student is scored alone")
        return []
    if not there:
        print(f"no teacher store at {', '.join(paths) or '(none)'}: the student is scored alone")
        return []
    taught = [StoreIdentity.from_dict(store) for store in stores_of(student.facts)]
    for store in there:
        if store.identity not in taught:
            print(_not_the_teacher(store, taught))
    return [store for store in there if store.identity in taught]


def _not_the_teacher(store: TeacherStore, taught: list[StoreIdentity]) -> str:
    found, expected = _who(store.identity), ", ".join(map(_who, taught))
    if found in map(_who, taught):
        said = f"holds the teacher that taught this student ({found}) in other settings"
    else:
        said = f"holds another teacher ({found}) than the one that taught this student ({expected})"
    return (
        f"{store.path} {said}: it is not the teacher of this checkpoint; the student is scored alone; add it to "
        "sources=[...] to score it"
    )


def _who(identity: StoreIdentity) -> str:
    return f"{identity.teacher} {identity.checkpoint_sha256[:12]}".strip()
