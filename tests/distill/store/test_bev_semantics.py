"""The classes of the columns are those that a reader of their stored probabilities finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_store import GRID, TOKENS, coverage, everything, open_writer

from distill.signals.bev import Columns


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "store.zarr"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.003, 0.1, 4.0]))
def test_semantics_and_probabilities_of_columns_agree(path: Path, seed: int, spread: float) -> None:
    scores = np.exp(np.random.default_rng(seed).normal(0, spread, (*GRID.shape[:2], 18)))
    bev = (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
    said, *rest = everything(TOKENS[0])
    known = coverage(TOKENS[0]).any(2)
    open_writer(path).write(TOKENS[0], said | {"bev": Columns(bev, known)}, *rest)
    group = zarr.open_group(path, mode="r")
    probs, semantics = group["bev_probs"][0], group["bev_semantics"][0]
    np.testing.assert_array_equal(semantics, np.where(known, probs.argmax(-1), 255))
    # one of the teacher's best, as far as the store tells them apart: two errors of at most 1/128
    said = np.take_along_axis(bev[known], semantics[known][:, None].astype(int), 1)[:, 0]
    assert (said >= bev[known].max(-1) * (1 - 2**-6)).all()
    if spread < 0.1:  # but not the very best: rounding makes ties
        assert (semantics != bev.argmax(-1))[known].any()
