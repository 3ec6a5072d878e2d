"""What a store keeps of what a teacher says: the encoding of its voxels, and which of them.

Letters: B batch, X Y Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from distill.errors import InputError
from distill.frame import Frame
from distill.signals import ENCODINGS, Signal, TeacherPrediction
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.columns import ColumnVoxels, CoveredVoxels, NotKept
from distill.store.reader import TeacherStore
from distill.store.writer import teacher_errors


def encoded_as_in(store: TeacherStore, signals: Sequence[Signal], asked: DictConfig) -> list[Signal]:
    """Signals in the encoding of the store that a dump continues.

    Args:
        store: that one.
        signals: voxels and columns on levels, and any others.
        asked: the configuration's `store`.

    Raises:
        InputError: the store has another encoding than is asked for.
    """
    names = {signal.name: signal.name in store.signals and signal.name in ENCODINGS["columns"] for signal in signals}
    for name in (name for name, encodes in names.items() if encodes):
        _check_encoding(store, name, asked)
    return [store.signals[signal.name] if names[signal.name] else signal for signal in signals]


def encoded(
    signals: Sequence[Signal], asked: DictConfig, first: Callable[[], tuple[Frame, TeacherPrediction]]
) -> tuple[list[Signal], str]:
    """Signals in the encoding that is asked for, or that takes least, and why, in words.

    Args:
        signals: voxels and columns on levels, and any others.
        asked: the configuration's `store`.
        first: a batch of one keyframe and what the teacher says of it; asked where an encoding depends on it.

    Raises:
        InputError: no encoding that is asked for keeps it.
    """
    voxels = next((signal for signal in signals if isinstance(signal, LevelVoxels)), None)
    encoding, told = asked.encoding, ""
    chosen: dict[str, Signal] = {}
    if voxels is not None and encoding in ("auto", "columns"):
        encoding, chosen["voxels"], told = _fitted(voxels, asked, *first())
    kinds = ENCODINGS["levels" if encoding == "auto" else encoding]
    for signal in signals:
        if isinstance(signal, LevelVoxels | LevelBev) and signal.name not in chosen:
            rule = {"rule": signal.rule} if isinstance(signal, LevelBev) else {}
            chosen[signal.name] = kinds[signal.name](signal.grid, signal.classes, **rule)
    return [chosen.get(signal.name, signal) for signal in signals], told


def kept(prediction: TeacherPrediction, frame: Frame, keep: str, whole_columns: bool) -> TeacherPrediction:
    """A prediction of which a store keeps some voxels.

    Args:
        prediction: of a batch.
        frame: the batch.
        keep: "all", or what the cameras of labelled keyframes show, "visible"; those without labels are kept whole.
        whole_columns: whether all of a column is kept of which anything is.
    """
    if keep == "all":
        return prediction
    kept_BXYZ = frame.mask_camera | ~frame.labelled[:, None, None, None]
    if whole_columns:
        kept_BXYZ = kept_BXYZ.any(-1, keepdim=True).expand_as(kept_BXYZ)
    return prediction._replace(kept_BXYZ=kept_BXYZ)


def _fitted(
    voxels: LevelVoxels, asked: DictConfig, frame: Frame, prediction: TeacherPrediction
) -> tuple[str, Signal, str]:
    """The encoding that keeps the keyframe in the fewest bytes, its signal of voxels, and a comparison in words."""
    sizes: dict[str, int] = {}
    with teacher_errors(frame.token[0]):
        if asked.encoding == "auto":
            sizes["levels"] = _size(
                voxels, CoveredVoxels.of(kept(prediction, frame, asked.keep, whole_columns=False))[0]
            )
        said = CoveredVoxels.of(kept(prediction, frame, asked.keep, whole_columns=True))[0]
        columns = ColumnVoxels.fitted(said, asked.step, voxels.grid, voxels.classes)
        try:
            sizes["columns"] = _size(columns, said)
        except NotKept:
            if asked.encoding != "auto":
                raise
    chosen = min(sizes, key=sizes.__getitem__)
    compared = ", ".join(f"{size / 1e6:.2f} MB by {name}" for name, size in sizes.items())
    signal = columns if chosen == "columns" else voxels
    return chosen, signal, f"voxels are kept by {chosen} (store.encoding; the first keyframe: {compared})"


def _size(signal: Signal, said: CoveredVoxels) -> int:
    values = signal.encode(said)
    return sum(len(array.pack(values[array.name])) for array in signal.arrays())


def _check_encoding(store: TeacherStore, name: str, asked: DictConfig) -> None:
    there = store.signals[name]
    if asked.encoding != "auto" and not isinstance(there, ENCODINGS[asked.encoding][name]):
        held = next((each for each, kinds in ENCODINGS.items() if isinstance(there, kinds[name])), "another way")
        raise InputError(
            f"{store.path} keeps {name} by {held}, store.encoding={asked.encoding} is asked for: "
            "set store.encoding=auto, or give another store.path"
        )
    if isinstance(there, ColumnVoxels) and there.step != asked.step:
        raise InputError(
            f"{store.path} keeps {name} in steps of {there.step} nats, store.step={asked.step} is asked for: "
            f"set store.step={there.step}, or give another store.path"
        )
