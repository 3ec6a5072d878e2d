"""The teacher store: what a teacher says about every keyframe, in one zarr v3 group that plain zarr can read.

`StoreWriter` fills it, `TeacherStore` reads it; `schema` says what is in it, `codec` and `gaussians` how they round.
"""

from distill.store.gaussians import GaussianKind
from distill.store.reader import DamagedSample, TeacherStore
from distill.store.schema import NOT_COVERED, StoreIdentity
from distill.store.writer import StoreWriter

__all__ = ["NOT_COVERED", "DamagedSample", "GaussianKind", "StoreIdentity", "StoreWriter", "TeacherStore"]
