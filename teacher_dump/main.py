"""occ-dump: run a teacher over keyframes and write what it knows into a store."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from distill import ranks
from distill.classes import ClassSet
from distill.command import command
from distill.errors import InputError
from distill.files import write_durably
from distill.frame import Frame, stack
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.loader import frame_loader
from distill.memory import keep_freed_memory
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import KeyframeIndex, Keyframes
from distill.nuscenes.inventory import Inventory, settle_missing, sources_of, summary, take_stock
from distill.nuscenes.layout import LIDAR
from distill.signals import Signal, described, signal_class
from distill.signals.columns import ColumnVoxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.store.address import place_of
from distill.store.keeping import encoded, encoded_as_in, kept
from distill.store.writer import teacher_errors
from teacher_dump.asked import AskedFrames
from teacher_dump.border import ask, open_teacher, place
from teacher_dump.estimate import HANDFUL, Pace, check_space, forecast
from teacher_dump.gate import Gate
from teacher_dump.panel import panel
from teacher_dump.teachers import Teacher, TeacherPrediction


@dataclass
class Dump:
    """One process's part of a dump: its teacher, its store, its keyframes.

    Attributes:
        config: of the program.
        teacher: on `device`.
        writer: of the store.
        gate: what watches the teacher.
        digests: token -> what the teacher is given, for `StoreWriter.write`.
        device: where the teacher computes.
        pace: of this process.
    """

    config: DictConfig
    teacher: Teacher
    writer: StoreWriter
    gate: Gate
    digests: dict[str, np.ndarray]
    device: torch.device
    pace: Pace = field(default_factory=Pace)

    def run(self, keyframes: Keyframes, seen: dict[str, int | None]) -> int:
        """Dump keyframes that no other process dumps; loading, teacher, compression and writing overlap.

        Args:
            keyframes: what is to be dumped.
            seen: token -> which version of them is to be replaced (`StoreWriter.version`); None: none, it is absent.

        Returns:
            How many were dumped.
        """
        frames, tokens = frames_of(self.config, self.teacher, keyframes), keyframes.tokens
        progress = tqdm(total=len(tokens), desc="dump", unit="keyframe", disable=ranks.rank() != 0)
        with progress, ThreadPoolExecutor(self.config.dump.writers) as pool:
            dumped = -1
            # once more as long as that finds any: a process may have ended without writing what it had claimed
            while progress.n > dumped and any(is_outstanding(self.writer, token, seen) for token in tokens):
                dumped = progress.n
                self._go_through(frames, self._claimed(tokens, seen), pool, progress)
        return int(progress.n)

    def _go_through(
        self, frames: Dataset[Frame], positions: Iterator[int], pool: ThreadPoolExecutor, progress: tqdm
    ) -> None:
        """Dump the frames at some positions."""
        dump = self.config.dump
        loader = frame_loader(frames, dump.workers, batch_size=dump.batch_size, sampler=positions)
        writing: deque[Future[None]] = deque()
        for frame in loader:
            first = progress.n == 0
            for sample in self.samples(frame.to(self.device), first):
                writing.append(pool.submit(self.writer.write, **sample))
                # a bounded queue: the teacher waits for the disk instead of filling the memory
                while len(writing) > 2 * self.config.dump.writers:
                    writing.popleft().result()
                progress.update()
            self.pace.done(len(frame.token))
            if first and self.config.dump.space == "check":
                while writing:
                    writing.popleft().result()
                check_space(self.writer.store, frame.token, len(self.writer.missing([*self.digests])))
            if self.gate.labelled:
                progress.set_postfix_str(f"mIoU {self.gate.miou:.1f}")
        for future in writing:
            future.result()
        self.pace.written()

    def _claimed(self, tokens: list[str], seen: dict[str, int | None]) -> Iterator[int]:
        """The positions of keyframes that this process has claimed for itself.

        They are claimed as the loader asks for them, so that processes that go through the same keyframes share them.
        """
        for position, token in enumerate(tokens):
            if not self.writer.claim(token):
                continue
            if is_outstanding(self.writer, token, seen):
                yield position
            else:
                self.writer.release(token)

    def _inspect(self, frame: Frame, prediction: TeacherPrediction, said: dict[str, list[Any]]) -> None:
        """The first keyframe: what is kept must say what the teacher says; a picture of it goes beside the store."""
        voxel_BXYZC, covered_BXYZ, *_ = prediction
        covered_XYZ = None if covered_BXYZ is None else covered_BXYZ[0]
        for name, signal in self.writer.signals.items():
            with teacher_errors(frame.token[0]):
                signal.check(said[name][0], frame, voxel_BXYZC[0], covered_XYZ)
        if ranks.rank() == 0:
            picture = io.BytesIO()
            Image.fromarray(panel(frame, prediction, self.teacher.grid, self.gate.classes)).save(picture, "png")
            write_beside(self.config, ".png", picture.getvalue())

    def samples(self, frame: Frame, first: bool) -> list[dict[str, Any]]:
        """Ask the teacher about a batch, and show its answer to the gate.

        Args:
            frame: the batch, on `device`.
            first: whether it is the first one, of which more is checked, and a picture kept.

        Returns:
            Arguments of `StoreWriter.write` for each keyframe.

        Raises:
            InputError: what the teacher says cannot be kept, or is too weak.
        """
        prediction, free = ask(self.teacher, frame, self.gate.classes, self.device), self.gate.classes.free
        signals = self.writer.signals
        whole_columns = isinstance(signals.get("voxels"), ColumnVoxels)
        prediction = kept(prediction, frame, self.writer.store.identity.keep, whole_columns)
        said = {name: signal.say(prediction, frame, free) for name, signal in signals.items()}
        samples = self._judged(frame, prediction, said)
        if first:
            self._inspect(frame, prediction, said)
        return samples

    def _judged(self, frame: Frame, prediction: TeacherPrediction, said: dict[str, list[Any]]) -> list[dict[str, Any]]:
        """Each keyframe of the batch as it is to be written, after the gate has seen it."""
        free = self.gate.classes.free
        semantics_BXYZ, covered_BXYZ = prediction.semantics(free), prediction.covered_BXYZ
        everywhere_BXYZ = torch.ones_like(semantics_BXYZ, dtype=torch.bool)
        covered_BXYZ = everywhere_BXYZ if covered_BXYZ is None else covered_BXYZ
        kept_BXYZ = everywhere_BXYZ if prediction.kept_BXYZ is None else prediction.kept_BXYZ
        samples = []
        for index, token in enumerate(frame.token):
            found_XYZ, covered_XYZ = semantics_BXYZ[index].cpu().numpy(), covered_BXYZ[index].cpu().numpy()
            # a keyframe without labels has a mask of nothing
            labels_XYZ, mask_XYZ = frame.semantics[index].cpu().numpy(), frame.mask_camera[index].cpu().numpy()
            self.gate.check_classes(token, found_XYZ, covered_XYZ, mask_XYZ & (labels_XYZ == free))
            if frame.labelled[index]:
                self.gate.judge(found_XYZ, labels_XYZ, mask_XYZ)
            samples.append(
                {
                    "token": token,
                    "said": {name: items[index] for name, items in said.items()},
                    "semantics_XYZ": found_XYZ,
                    "coverage_XYZ": covered_XYZ,
                    "kept_XYZ": kept_BXYZ[index].cpu().numpy(),
                    "frame_digests": self.digests[token],
                }
            )
        return samples


@command("dump")
def main(config: DictConfig) -> None:
    """Dump the configured splits; see conf/dump.yaml."""
    index = open_dataroot(config.data)
    classes = instantiate(config.classes)
    teacher = open_teacher(config.teacher)
    check_grid(teacher, instantiate(config.grid))
    signals, lies = signals_of(config, teacher, classes), place_of(config.store.path)
    store = None if lies.empty() else TeacherStore(lies)
    if store is not None:  # before what takes long
        writer = open_writer(config, index, teacher, encoded_as_in(store, signals, config.store))
    stock = survey(config, index, teacher, store)
    if store is None:
        writer = create(config, index, teacher, stock, signals)
    mine = stock.keyframes.tokens[ranks.rank() :: ranks.world_size()]
    seen = outstanding(config, writer, mine)
    say(f"{len(mine) - len(seen)} of {len(mine)} keyframes are present in {writer.store.path}, {len(seen)} to dump")
    if seen:
        fill(config, index, teacher, writer, stock, seen)
    say(writer.summary())


def fill(
    config: DictConfig,
    index: KeyframeIndex,
    teacher: Teacher,
    writer: StoreWriter,
    stock: Inventory,
    seen: dict[str, int | None],
) -> None:
    """Dump what this rank has to, or a handful of it if `dump.estimate` asks what the rest will take."""
    device = ranks.device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    gate = Gate(config.gate.min_miou, config.gate.after, instantiate(config.classes))
    dump = Dump(config, place(teacher, device), writer, gate, given_to(teacher, stock), device)
    chosen = dict(itertools.islice(seen.items(), HANDFUL if config.dump.estimate else None))
    dumped = dump.run(index.select(list(chosen)), chosen)
    say(f"dumped {dumped} keyframes; {gate.verdict()}" if dumped else "dumped 0 keyframes")
    others = sum(is_outstanding(writer, token, chosen) for token in chosen)
    if others:
        say(f"{others} keyframes are being dumped by another process and were left to it")
    written = [token for token in chosen if writer.version(token) is not None]
    if config.dump.estimate and written:
        left = len(writer.missing(stock.keyframes.tokens))
        say(forecast(writer.store, written, left, len(seen) - dumped, dump.pace))
        if config.dump.space == "check":
            check_space(writer.store, written, left)


def frames_of(config: DictConfig, teacher: Teacher, keyframes: Keyframes) -> Dataset[Frame]:
    """The frames that the teacher is asked about."""
    labels = open_labels(config.data, teacher.grid)
    frames = FrameDataset(keyframes, labels=labels, augmentation=None, seed=0, **teacher.inputs)
    read = getattr(teacher, "read", None)
    return frames if read is None else AskedFrames(frames, keyframes, read)


def signals_of(config: DictConfig, teacher: Teacher, classes: ClassSet) -> list[Signal]:
    """The signals that `dump.signals` names, voxels and columns on levels.

    Raises:
        InputError: there is no such signal, or the teacher does not have it.
    """
    signals = []
    for name in config.dump.signals:
        kind = signal_class(name)
        try:
            signals.append(kind.of(teacher, teacher.grid, classes.names))
        except InputError as error:
            raise InputError(f"teacher {config.teacher.name} {error}") from error
    return signals


def check_grid(teacher: Teacher, grid: VoxelGrid) -> None:
    """Raise InputError unless the teacher predicts on `grid`."""
    if teacher.grid == grid:
        return
    if teacher.grid in (OCC3D, SURROUNDOCC):
        raise InputError(f"the teacher predicts on grid {teacher.grid.name}: dump it with grid={teacher.grid.name}")
    raise InputError(
        f"the teacher predicts on {teacher.grid}, this dump is on {grid}: let it predict on distill.grids.OCC3D "
        "or, with grid=surroundocc, on distill.grids.SURROUNDOCC"
    )


def chosen_tokens(config: DictConfig, index: KeyframeIndex) -> list[str]:
    """The keyframes of the configured splits.

    Raises:
        InputError: a keyframe is in two of them.
    """
    tokens = [token for split in config.dump.splits for token in index.keyframes(split).tokens]
    twice = len(tokens) - len(set(tokens))
    if twice:
        raise InputError(
            f"dump.splits=[{', '.join(config.dump.splits)}] overlap: {twice} keyframes are in two of them; name splits "
            "that have none in common"
        )
    return tokens[: config.dump.max_samples]


def survey(config: DictConfig, index: KeyframeIndex, teacher: Teacher, store: TeacherStore | None) -> Inventory:
    """The chosen keyframes that are whole; what there is is printed and written beside the store, if there is one yet.

    Raises:
        InputError: files are missing, nothing is left to dump, or what is in the store was dumped from other files.
    """
    labels = open_labels(config.data, teacher.grid)
    free = instantiate(config.classes).free
    stock = take_stock(
        index.select(chosen_tokens(config, index)),
        labels,
        free,
        cameras=True,
        lidar=has_scans(teacher),
        history=teacher.inputs.get("history", 0),
        further=getattr(teacher, "file", None),
    )
    splits = {"+".join(config.dump.splits): stock}
    advice = f"; it is {config.teacher.name} that looks at scans: choose a teacher= that looks at cameras alone"
    settle_missing(splits, config.data.missing, beside(config, ".missing_files.txt"), advice)
    ranks.check_enough(len(stock.keyframes), "keyframes")
    present = 0 if store is None else sum(token in store.present for token in stock.keyframes.tokens)
    if ranks.rank() == 0:
        told = summary(splits, labels, {"in the store": dict.fromkeys(splits, str(present))})
        print(told, flush=True)
        write_beside(config, ".summary.txt", f"{told}\n".encode())
    different = {} if store is None or config.dump.overwrite else store.other_frames(given_to(teacher, stock))
    if different:
        assert store is not None
        token, sources = next(iter(different.items()))
        raise InputError(
            f"{len(different)} of the {present} keyframes in {store.path} were dumped from other files than those of "
            f"{index.source} (first {token}: {', '.join(sources)}): give another store.path, or do them again with "
            "dump.overwrite=true"
        )
    return stock


def has_scans(teacher: Teacher) -> bool:
    """Whether the teacher is given anything of the LiDAR."""
    return bool(teacher.inputs["lidar"]) or teacher.inputs["depth_stride"] is not None


def given_to(teacher: Teacher, stock: Inventory) -> dict[str, np.ndarray]:
    """Token -> digests of what the teacher is given, for `StoreWriter.write`."""
    sources = sources_given(teacher, stock.keyframes.channels)
    left_out = {"labels"} if has_scans(teacher) else {"labels", LIDAR}
    given = np.array([source not in left_out for source in sources], np.uint32)
    return {token: stock.digests[token][: len(sources)] * given for token in stock.keyframes.tokens}


def sources_given(teacher: Teacher, channels: Sequence[str]) -> tuple[str, ...]:
    """What a store knows by its digest: all but the labels, which no teacher is given.

    Behind them, where students and their labels look for nothing, comes a file of the teacher's own.
    """
    sources = sources_of(channels)
    return (*sources, "teacher's file") if hasattr(teacher, "file") else sources[:-1]


def beside(config: DictConfig, ending: str) -> Path:
    """A file beside the store that bears its name; of one in an object store, below `dump.beside` in a local folder."""
    scheme, _, rest = config.store.path.rpartition("://")
    path = Path(config.dump.beside, rest) if scheme else Path(rest)
    return path.with_name(path.name.removesuffix(".zarr") + ending)


def write_beside(config: DictConfig, ending: str, content: bytes) -> None:
    """Write a file beside the store, in a folder that need not be there."""
    path = beside(config, ending)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror}): free some space, or make it writable") from error


def create(
    config: DictConfig, index: KeyframeIndex, teacher: Teacher, stock: Inventory, signals: Sequence[Signal]
) -> StoreWriter:
    """Make the store of this dump, if no other process is first, and open it."""
    classes, device = instantiate(config.classes), ranks.device(config.device)

    def first() -> tuple[Frame, TeacherPrediction]:
        frames = frames_of(config, teacher, index.select(stock.keyframes.tokens[:1]))
        frame = stack([frames[0]]).to(device)
        return frame, ask(place(teacher, device), frame, classes, device)

    of_store, told = encoded(signals, config.store, first)
    if told:
        say(told)
    identity, path = identity_of(config, index, teacher, of_store), config.store.path
    StoreWriter.create(path, identity, index.tokens, index.scenes, of_store)
    # another process may have been first, and have found another encoding to take less
    return open_writer(config, index, teacher, encoded_as_in(TeacherStore(path), signals, config.store))


def open_writer(config: DictConfig, index: KeyframeIndex, teacher: Teacher, signals: Sequence[Signal]) -> StoreWriter:
    """Go on with the store of this dump; one of another teacher is refused."""
    return StoreWriter.open(config.store.path, identity_of(config, index, teacher, signals), index.tokens, index.scenes)


def identity_of(config: DictConfig, index: KeyframeIndex, teacher: Teacher, signals: Sequence[Signal]) -> StoreIdentity:
    """Of the store of this dump."""
    told = getattr(teacher, "identity", None) or OmegaConf.to_container(config.teacher, resolve=True)
    assert isinstance(told, Mapping)
    description = dict(told)
    description.pop("checkpoint", None)  # known by its digest, wherever the file lies
    return StoreIdentity(
        teacher=config.teacher.name,
        checkpoint_sha256=teacher.checkpoint_sha256,
        config={str(key): value for key, value in description.items()},
        grid=teacher.grid,
        classes=instantiate(config.classes).names,
        signals=described(signals),
        frame_digests=sources_given(teacher, index.channels),
        keep=config.store.keep,
    )


def outstanding(config: DictConfig, writer: StoreWriter, mine: list[str]) -> dict[str, int | None]:
    """What is to be dumped of this rank's tokens, with the version that is to be replaced; None: it is absent.

    That is what the store has not, or not intact when dump.verify asks, or everything when dump.overwrite asks.
    """
    if config.dump.verify:
        say(f"{writer.discard_damaged(mine)} damaged samples found and discarded")
    if config.dump.overwrite:
        return dict(writer.versions(mine))
    return dict.fromkeys(writer.missing(mine))


def is_outstanding(writer: StoreWriter, token: str, seen: dict[str, int | None]) -> bool:
    """Whether a sample of `outstanding` has not been written since, by whatever process."""
    return writer.version(token) in (None, seen[token])


def say(message: str) -> None:
    """Print one line, saying which rank speaks where there are several."""
    speaker = f"rank {ranks.rank()}: " if ranks.world_size() > 1 else ""
    print(f"{speaker}{message}", flush=True)
