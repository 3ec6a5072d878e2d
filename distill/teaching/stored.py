"""`Stored`: what a teacher wrote into one or several stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from distill.classes import ClassSet
from distill.errors import InputError
from distill.frame import Frame, Told
from distill.grids import VoxelGrid
from distill.networks.prediction import Occupancy
from distill.signals import SIGNALS, Signal
from distill.store import DamagedSample, TeacherStore
from distill.store.address import stores_in
from distill.store.cache import Cache
from distill.teaching import Provider, Pupil
from distill.teaching.taught import Taught


def open_stored(
    name: str,
    paths: Sequence[str] | None,
    folder: str,
    missing: Literal["error", "skip"],
    signals: Sequence[str] | None,
    weight: float,
    pupil: Pupil,
    cache: Mapping[str, Any] | None = None,
) -> Stored:
    """The teacher that an entry of `teachers` describes.

    Args:
        name: of the teacher.
        paths: of its stores; None: the only one in `folder` that is about these keyframes and answers what is asked.
        folder: where stores lie.
        missing, signals, weight: see `Stored`.
        pupil: whom it teaches; asks further questions if a store holds any keyframe without labels.
        cache: arguments of `Cache`, for stores in object stores; None: none.

    Raises:
        InputError: there is no store, or several could be meant, or one does not exist or does not fit.
    """

    def asked_of(stores: Sequence[TeacherStore]) -> Collection[str]:
        holds_unlabelled = any(token in store.present for store in stores for token in pupil.unlabelled)
        return {*pupil.asked, *pupil.asked_unlabelled} if holds_unlabelled else pupil.asked

    if paths is None:
        paths = [_only_one(name, folder, signals, pupil.grid, asked_of, pupil.tokens).path]
    stores = [TeacherStore(path, None if cache is None else Cache(**cache)) for path in paths]
    if not stores:
        raise InputError(f"teachers.{name} has no store: give teachers.{name}.paths=[...], or kd=none")
    for store in stores:
        _check_kept(name, store, pupil)
    return Stored(name, stores, missing, signals, weight, pupil.grid, pupil.classes, asked_of(stores))


class Stored(Provider):
    """A teacher by its stores: a frame is taught by the first one that holds it.

    Holds no open files: it may be pickled, and read in loader workers.

    Args:
        name: of the teacher.
        stores: one or more.
        missing: "error" or "skip": what to do about a frame that no store holds, or holds damaged.
        signals: which of the stores' signals may answer; None: all that they hold.
        weight: what its part of a term is multiplied with.
        grid: of the student.
        classes: of the student.
        asked: the questions that are going to be asked; nothing is read but what answers them.

    Attributes:
        answers: question -> the signal that answers it.

    Raises:
        InputError: a store has no answer to a question on this grid, or other classes, or several teachers are asked
            what only one can be.
    """

    def __init__(
        self,
        name: str,
        stores: Sequence[TeacherStore],
        missing: Literal["error", "skip"],
        signals: Sequence[str] | None,
        weight: float,
        grid: VoxelGrid,
        classes: ClassSet,
        asked: Collection[str],
    ) -> None:
        super().__init__(name, weight)
        self.stores, self.missing, self.grid, self.classes = stores, missing, grid, classes
        self.remote = any(store.place.remote for store in stores)
        self.answers = {question: _answering(name, stores, question, signals, grid) for question in sorted(asked)}
        rendered = [signal for signal in self.answers.values() if "covered" in signal.answers]
        if rendered:
            self.answers["covered"] = rendered[0]
        # frames of one batch bring the same, though they come from different stores
        self._in_columns = "columns" in self.answers and any(store.identity.keep != "all" for store in stores)
        self._read = list(dict.fromkeys(signal.name for signal in self.answers.values()))
        for store in stores:
            store.check(grid, classes, self._read)
        for signal in self.answers.values():
            self._check_comparable(signal)
            self._check_encoding(signal)

    def _check_comparable(self, signal: Signal) -> None:
        """Raise InputError where the stores are of several teachers, of whom a signal does not mean the same."""
        speakers = [
            (store.identity.teacher, store.identity.checkpoint_sha256, store.signals[signal.name])
            for store in self.stores
        ]
        if not signal.comparable and any(speaker != speakers[0] for speaker in speakers):
            raise InputError(
                f"teachers.{self.name}.paths: {signal.name} of different teachers ({self.speakers()}) do not compare: "
                "give each a name of its own in teachers, and a term that listens to it alone"
            )

    def _check_encoding(self, signal: Signal) -> None:
        """Raise InputError where stores encode a signal differently: frames of one batch must bring the same."""
        other = next((store for store in self.stores if type(store.signals[signal.name]) is not type(signal)), None)
        if other is not None:
            raise InputError(
                f"teachers.{self.name}.paths: {self.stores[0].path} and {other.path} encode {signal.name} differently "
                f"({type(signal).__name__}, {type(other.signals[signal.name]).__name__}): make them alike with "
                "occ-store do=convert store.encoding=..."
            )

    def holds(self, token: str) -> bool:
        """Whether a store holds the frame."""
        return self.store_of(token) is not None

    def store_of(self, token: str) -> TeacherStore | None:
        """The first store that holds the frame."""
        return next((store for store in self.stores if token in store.present), None)

    def told(self, token: str) -> Told:
        """What it says about a frame.

        Raises:
            DamagedSample: the frame is damaged, and `missing` is "error".
        """
        wanted = self._read, "covered" not in self.answers, self._in_columns
        store = self.store_of(token)
        try:
            if store is not None:
                return store.told(token, *wanted)
        except DamagedSample:
            if self.missing == "error":
                raise
        return self.stores[0].silence(*wanted)

    def taught(self, frame: Frame, prediction: Occupancy | None = None) -> Taught:
        """Its answers about a batch, whatever the student says."""
        told = frame.teachers[self.name]
        return Taught(self.name, self.weight, told, self.answers, frame, self.grid, self.classes.free)

    def facts(self) -> dict[str, Any]:
        """Who teaches, for a checkpoint; JSON-ready."""
        return {
            **super().facts(),
            "stores": [store.identity.to_dict() for store in self.stores],
            "paths": [store.path for store in self.stores],
        }

    def speakers(self) -> str:
        """Who teaches, in a few words."""
        return ", ".join(
            f"{store.identity.teacher} {store.identity.checkpoint_sha256[:8]}".strip() for store in self.stores
        )

    def check(self, digests: Mapping[str, np.ndarray]) -> None:
        """Raise InputError where a frame is in no store (and `missing` is "error"), or was dumped from other files.

        Args:
            digests: of all frames, see `TeacherStore.other_frames`.
        """
        untaught = [token for token in digests if not self.holds(token)]
        if untaught and self.missing == "error":
            raise InputError(
                f"{len(untaught)} of {len(digests)} training keyframes (first {untaught[0]}) are not in "
                f"{', '.join(store.path for store in self.stores)}: dump them with occ-dump, or set "
                f"teachers.{self.name}.missing=skip"
            )
        for store in self.stores:
            taught = {token: digest for token, digest in digests.items() if self.store_of(token) is store}
            different = store.other_frames(taught)
            if different:
                token, sources = next(iter(different.items()))
                raise InputError(
                    f"{store.path}: {len(different)} of {len(taught)} keyframes were dumped from other files than "
                    f"those of data.root (first {token}: {', '.join(sources)}): give the data that the teacher saw, or "
                    "dump it again"
                )

    def remarks(self) -> list[str]:
        """A line for each store that does not say what it was dumped from."""
        return [
            f"{store.path} is of schema 2, which does not say which files it was dumped from: they are not compared"
            for store in self.stores
            if not store.knows_frames
        ]


def _check_kept(name: str, store: TeacherStore, pupil: Pupil) -> None:
    """Refuse questions about voxels that a store has not kept."""
    if store.identity.keep == "all":
        return
    hidden, hidden_unlabelled = pupil.hidden
    withheld = (token for token in pupil.unlabelled if token in store.present)
    partly = hidden_unlabelled and any(not store.coverage(token).all() for token in withheld)
    asked = "kd.mask" if hidden else "kd.unlabelled=all" if partly else None
    if asked:
        raise InputError(
            f"{store.path} keeps what cameras show (store.keep=visible), and teachers.{name} is asked about more "
            f"({asked}): set kd.mask=camera and kd.unlabelled=seen, or dump with store.keep=all into a new store.path"
        )


def _only_one(
    name: str,
    folder: str,
    signals: Sequence[str] | None,
    grid: VoxelGrid,
    asked_of: Callable[[Sequence[TeacherStore]], Collection[str]],
    tokens: Sequence[str],
) -> TeacherStore:
    """The store in a folder that is meant; several, or none, are an error that lists what there is.

    One that lacks answers is meant if there is no other: whoever asks is told what it lacks.
    """
    stores = [TeacherStore(address) for address in stores_in(folder)]
    of_these = [store for store in stores if set(store.tokens) == set(tokens)]
    about = [
        store for store in of_these if all(_answer([store], question, signals, grid) for question in asked_of([store]))
    ]
    if len(about or of_these) == 1:
        return (about or of_these)[0]
    there = "; ".join(
        f"{store.path} (teacher {store.identity.teacher}, grid {store.grid.name}, {', '.join(store.identity.signals)}, "
        f"{len(store.present)} keyframes)"
        for store in about or stores
    )
    if about:
        raise InputError(f"{len(about)} stores could teach: {there}: say which with teachers.{name}.paths=[...]")
    raise InputError(
        f"no store in {folder} is about these keyframes on grid {grid.name} (there: {there or 'none'}): dump one with "
        f"occ-dump, or give teachers.{name}.paths=[...], or kd=none"
    )


def _answer(
    stores: Sequence[TeacherStore], question: str, signals: Sequence[str] | None, grid: VoxelGrid
) -> Signal | None:
    """The first signal that all stores have and that answers a question on the grid."""
    first = stores[0]
    # what is stored before what is rendered, whatever the order they were dumped in
    known = [*(name for name in SIGNALS if name in first.identity.signals), *first.identity.signals]
    for name in dict.fromkeys(known if signals is None else signals):
        held = [store.signals[name] for store in stores if name in store.identity.signals]
        if len(held) == len(stores) and question in held[0].answers and all(signal.fits(grid) for signal in held):
            return held[0]
    return None


def _answering(
    name: str, stores: Sequence[TeacherStore], question: str, signals: Sequence[str] | None, grid: VoxelGrid
) -> Signal:
    answer = _answer(stores, question, signals, grid)
    if answer is not None:
        return answer
    held = "; ".join(
        f"{store.path} holds {', '.join(store.identity.signals)} on grid {store.grid.name}" for store in stores
    )
    of = "" if signals is None else f" of teachers.{name}.signals=[{', '.join(signals)}]"
    fix = f"give other stores (teachers.{name}.paths) or signals, or dump what is missing with dump.signals"
    if question in ("seen", "features", "voxel_features"):
        wanted = ",".join([*stores[0].identity.signals, question])
        fix = f"dump into a new store.path with dump.signals=[{wanted}]"
        fix += ", or set kd.unlabelled=all" if question == "seen" else ""
    raise InputError(f"no signal{of} answers for {question} on grid {grid.name} ({held}): {fix}")
