"""What networks that look back remember, so that none looks at the same keyframe twice."""

from __future__ import annotations

import hashlib
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from distill.frame import Frame

T = TypeVar("T")


class Memory(Generic[T]):
    """What was made of single keyframes in the last calls, known by the digest of all that it was made of.

    A keyframe seen in a mirror, or through a broken camera, is another one, and a token is not asked for: so no other
    is taken for it, in whatever order they come.

    Args:
        made_of: names of the fields of a frame from which it is made.
        calls: what was looked at in so many of the last calls is remembered: 1 where keyframes follow each other.
    """

    def __init__(self, made_of: Sequence[str], calls: int) -> None:
        self.made_of = made_of
        self.looked_at: deque[dict[bytes, T]] = deque(maxlen=calls + 1)

    def begin(self) -> None:
        """Begin a call; what was looked at in the earliest one is forgotten."""
        self.looked_at.append({})

    def keep(self, frame: Frame, made: Iterable[T]) -> None:
        """Remember what was made of each row of a batch."""
        self.looked_at[-1].update(zip(self._digests(frame), made, strict=True))

    def recall(self, frame: Frame, make: Callable[[Frame], Sequence[T]]) -> list[T]:
        """What was made of each row of a batch; `make` is given those that are not known, with `made_of` alone."""
        digests, known, now = self._digests(frame), ChainMap(*reversed(self.looked_at)), self.looked_at[-1]
        now.update({digest: known[digest] for digest in digests if digest in known})
        missing = {digest: row for row, digest in enumerate(digests) if digest not in now}
        if missing:
            rows = list(missing.values())
            part = Frame(**{name: getattr(frame, name)[rows] for name in self.made_of})
            now.update(zip(missing, make(part), strict=True))
        return [now[digest] for digest in digests]

    def _digests(self, frame: Frame) -> list[bytes]:
        fields = [getattr(frame, name).cpu().contiguous().numpy() for name in self.made_of]
        return [
            hashlib.sha256(b"".join(field[row].tobytes() for field in fields)).digest() for row in range(len(fields[0]))
        ]
