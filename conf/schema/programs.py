"""What the values of each program may be, group by group."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from conf.schema.data import Data, DataOfCheckpoint
from conf.schema.networks import Inputs
from conf.schema.terms import Term
from conf.schema.values import (
    Balance,
    BalanceBy,
    Built,
    Confidence,
    Count,
    CountOrNone,
    Device,
    Edges,
    Known,
    Mask,
    Name,
    Node,
    NotNegative,
    Number,
    Place,
    Positive,
    Probability,
    Scales,
    Seed,
    Signal,
    SourcePlace,
    Split,
    Splits,
    StoreCache,
    StorePlace,
    TaughtFrames,
    TaughtMask,
    Text,
    Threshold,
    Unlabelled,
    distinct,
)


def _one_or_several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _share_and_seed(value: Any) -> Any:
    if not isinstance(value, dict | None):
        raise ValueError("should be null, or a group: {share: 0.75, seed: 0}")
    return value


class View(Known):
    """`student.evaluation.tta.View`."""

    images: bool
    world: bool


class Common(Node):
    """What all programs share."""

    cache_dir: Place
    grid: Built | None
    classes: Built | None


class Computing(Common):
    """What the programs share that run networks."""

    seed: Seed
    device: Device


class Student(Node):
    """A network and its inputs."""

    name: Name
    inputs: Inputs
    network: Built


class RayDraw(Node):
    """`distill.nuscenes.rays.RayDraw`."""

    count: Count
    neighbours: CountOrNone
    neighbour_weight: Probability
    balance: Balance
    farthest: Positive


class Rendering(Node):
    """How rays are sampled, of all terms that render."""

    samples: Count
    far: Positive


class Objective(Node):
    """Which terms are minimised, beside those of `KD`."""

    mask: Mask
    rays: RayDraw | None = None
    rendering: Rendering | None = None
    terms: dict[str, Term]


class KD(Node):
    """How a student listens to its teachers."""

    name: Name
    warmup_steps: CountOrNone
    temperature: Positive | None = None
    confidence: Confidence | None = None
    mask: TaughtMask | None = None
    unlabelled: Unlabelled | None = None
    balance: Balance | None = None
    balance_by: BalanceBy | None = None
    occupied_share: Probability | None = None
    near: Positive | None = None
    threshold: Threshold | None = None
    frames: TaughtFrames | None = None
    terms: dict[str, Term]


class Withheld(Node):
    """`distill.nuscenes.withheld.Withheld`."""

    share: Annotated[Number, Field(gt=0, lt=1)]
    seed: Seed


class SimulatedInt8(Node):
    """How a network computes that is trained for 8 bits."""

    keep: list[Text]


class Trainer(Node):
    """How a network is trained."""

    init: Place | None
    epochs: Count
    batch_size: Count
    workers: CountOrNone
    learning_rate: NotNegative
    weight_decay: NotNegative
    warmup_steps: CountOrNone
    clip_norm: Positive
    precision: Literal["bf16", "fp16", "fp32"]
    ema_decay: Annotated[Number, Field(ge=0, lt=1)]
    checkpoint_every: Count
    max_samples: Count | None
    max_val_samples: Count | None
    withheld: Annotated[Withheld | None, BeforeValidator(_share_and_seed)]
    labelled_share: Annotated[Number, Field(gt=0, le=1)] | None
    gradient_norms_every: Count | None
    int8: SimulatedInt8 | None
    augmentation: Built | None


class Train(Computing):
    """occ-train-student."""

    data: Data
    student: Student
    kd: KD
    teachers: dict[str, Built]
    objective: Objective
    trainer: Trainer
    name: Name
    variant: str
    not_in_name: list[str]
    output: Place


class WriteStore(Node):
    """Where a dump goes, and how it keeps voxels."""

    path: StorePlace
    encoding: Literal["auto", "columns", "levels", "fine"]
    step: Annotated[Number, Field(ge=1 / 16, le=1)]
    keep: Literal["all", "visible"]


class DumpSettings(Node):
    """What is dumped, and with how many hands."""

    splits: Splits
    max_samples: Count | None
    task: int
    overwrite: bool
    signals: Annotated[list[Signal], Field(min_length=1), AfterValidator(distinct)]
    estimate: bool
    space: Literal["check", "ignore"]
    verify: bool
    batch_size: Count
    workers: CountOrNone
    writers: Count
    beside: Place


class GateSettings(Node):
    """When a teacher is too weak."""

    min_miou: Annotated[Number, Field(ge=0, le=100)]
    after: Count


class Teacher(Built):
    """A teacher; its arguments are its own."""

    name: Name


class Dump(Computing):
    """occ-dump."""

    data: Data
    teacher: Teacher
    store: WriteStore
    dump: DumpSettings
    gate: GateSettings


class TeacherOfCheckpoint(Node):
    """Where the stores of a teacher of the checkpoint are; null stands for what the checkpoint says."""

    paths: list[StorePlace] | None


class MetricSettings(Node):
    """Edges and thresholds of the metrics."""

    distance_bands: Edges
    height_bands: Edges
    f_score_distance: Positive
    calibration_bins: Count


class CostSettings(Node):
    """How latency is measured."""

    warmup: CountOrNone
    runs: Count


class TTA(Node):
    """Mirrored views that are averaged."""

    views: list[Built]


class Eval(Computing):
    """occ-eval."""

    data: DataOfCheckpoint
    teachers: dict[str, TeacherOfCheckpoint]
    robustness: dict[str, Built]
    tta: TTA
    checkpoint: Place | None
    sources: list[SourcePlace]
    cache: StoreCache | None
    weights: Literal["ema", "raw"]
    split: Split | None
    max_samples: Count | None
    batch_size: Count
    workers: CountOrNone
    metrics: MetricSettings
    cost: CostSettings
    pictures: list[Text]
    export: Place | None
    output: Place | None


class PoolLabels(Common):
    """occ-pool-labels."""

    data: Data
    splits: Splits
    scales: Scales
    overwrite: bool
    threads: Count
    output: Place


class Int8(Node):
    """How a network is brought to 8 bits."""

    frames: Count
    keep: list[Text] | None
    judged: Count
    changed: Probability


class OnnxSettings(Node):
    """What an ONNX file is given and says."""

    outputs: Annotated[list[Literal["classes", "logits"]], Field(min_length=1), AfterValidator(distinct)]
    pool: Literal["inside", "table"]
    batch: Count | None
    cameras: Count | None
    licence: Text | None
    int8: Int8 | None


class Export(Node):
    """occ-export."""

    cache_dir: Place
    data: DataOfCheckpoint
    checkpoint: Place
    format: Literal["onnx", "safetensors"]
    output: Place | None
    onnx: OnnxSettings


class NewStore(Node):
    """What a store is made into."""

    path: StorePlace | None
    encoding: Literal["same", "auto", "columns", "levels", "fine"]
    step: Annotated[Number, Field(ge=1 / 16, le=1)]
    keep: Literal["same", "visible"]


class Stores(Node):
    """occ-store."""

    cache_dir: Place
    data: Data | None
    do: Literal["info", "verify", "pack", "convert", "merge"]
    path: Annotated[list[StorePlace], BeforeValidator(_one_or_several), Field(min_length=1), AfterValidator(distinct)]
    discard: bool
    threads: Count
    store: NewStore


BUILT: dict[str, type[Known]] = {
    "student.evaluation.tta.View": View,
}


PROGRAMS: dict[str, type[Node]] = {
    "train": Train,
    "dump": Dump,
    "eval": Eval,
    "pool_labels": PoolLabels,
    "stores": Stores,
    "export": Export,
}
