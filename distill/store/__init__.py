"""The teacher store: what a teacher says about every keyframe, in one zarr v3 group that plain zarr can read.

`StoreWriter` fills it, `TeacherStore` reads it; `schema` says what is in it, `distill.signals` how a teacher's words
are kept, `place` where it may lie.
"""

from distill.signals import NOT_COVERED, GaussianKind
from distill.store.reader import TeacherStore
from distill.store.sample import DamagedSample
from distill.store.schema import StoreIdentity
from distill.store.writer import StoreWriter

__all__ = ["NOT_COVERED", "DamagedSample", "GaussianKind", "StoreIdentity", "StoreWriter", "TeacherStore"]
