"""Names of sources, and the folder of a report: where it lies, whose it is, and that it holds one evaluation alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distill import ranks
from distill.command import distinct
from distill.errors import InputError
from distill.files import owned
from distill.nuscenes.dataroot import source_of

# everything that an evaluation may leave in its folder
_WRITTEN = (
    *("report.html", "metrics.json", "summary.csv", "per_class.csv", "keyframes.csv", "robustness.csv"),
    *("bad_predictions.csv", "summary.txt", "panels/*.png"),
)
# what the name of the folder says already, and what no score depends on
_NOT_IN_NAME = (
    *("checkpoint", "split", "output", "export", "pictures", "device", "workers", "batch_size", "cost."),
    *("cache_dir", "data.cache_dir", "data.train_split", "data.val_split"),
)
# what has to be given where no checkpoint brings its own
_DATA = ("data", "data.root", "data.version", "data.index")


def name_of(path: str) -> str:
    """A short name: that of the run for its best.pt or last.pt, otherwise that of the file or folder."""
    last = Path(path)
    if last.name in ("best.pt", "last.pt"):
        return last.parent.name
    return (
        last.stem if last.suffix in (".pt", ".pth", ".safetensors", ".onnx", ".zarr") else last.name
    )  # v1.1 has no suffix


@contextmanager
def report_folder(config: DictConfig, settings: DictConfig, own_data: bool) -> Iterator[Path]:
    """The folder of the report, made if absent, and owned until the end of the block.

    Args:
        config: of conf/eval.yaml.
        settings: see `student.evaluation.request.settings_of`.
        own_data: whether a checkpoint brings its data.

    Raises:
        InputError: the folder cannot be written, another evaluation is writing into it, or nobody asked for this folder
            and it holds the evaluation of other data.
    """
    if config.output is None:
        output = default_folder(config, settings.split, HydraConfig.get().overrides.task, own_data)
    else:
        output = Path(config.output)
    lock = output / ".lock"
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise InputError(f"{output}: cannot write here ({error.strerror}): choose another output=") from error
    # one rank owns it for all of them
    with owned(lock, f"the report folder {output}") if ranks.rank() == 0 else nullcontext():
        if config.output is None:
            _check_same_data(output / "metrics.json", str(source_of(settings.data)))
        yield output


def default_folder(config: DictConfig, split: str, overrides: Sequence[str], own_data: bool) -> Path:
    """`eval-<split>` beside the first source; the name goes on with what else was asked for and changes the scores.

    Other files than best.pt, and folders, put their own name in front; what is not local has it in `runs`.

    Args:
        config: of conf/eval.yaml; something to score is given.
        split: what is scored.
        overrides: of the command line.
        own_data: whether a checkpoint brings its data, so that others are a choice.
    """
    first, *others = [path for path in (config.checkpoint, *config.sources) if path is not None]
    expected = [*_NOT_IN_NAME, *([] if own_data else _DATA), *([] if others else ["sources"])]
    name, beside = f"eval-{split}{distinct(overrides, but=expected)}", Path(first)
    if "://" in first:  # nothing can lie beside it
        return Path("runs") / name_of(first) / name
    if beside.name == "best.pt":
        return beside.with_name(name)
    return beside.with_name(f"{name_of(first) if beside.is_dir() else beside.name}-{name}")


def _check_same_data(metrics: Path, tables: str) -> None:
    if not metrics.exists():
        return
    earlier = json.loads(metrics.read_text(encoding="utf-8"))["scored"].get("dataroot", tables)
    if earlier != tables:
        raise InputError(
            f"{metrics.parent} holds an evaluation on {earlier}, this one is on {tables}: give output= as well"
        )


def begin(output: Path) -> None:
    """Remove what an earlier evaluation left: what lies in the folder from now on belongs to this one.

    Raises:
        InputError: it cannot be removed, or the folder not be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        for pattern in _WRITTEN:
            for path in output.glob(pattern):
                path.unlink()
    except OSError as error:
        raise InputError(f"{output}: cannot write here ({error.strerror}): choose another output=") from error
