"""The hash by which candidates are joined and chance decides, against a plain one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from scored import hashed

from oxa import hashes


@given(st.lists(st.text(max_size=20), max_size=30), st.integers(0, 5))
def test_the_vectorised_hash_equals_the_plain_one(texts: list[str], skip: int) -> None:
    part = pa.array(texts, pa.string())[skip:]  # a slice, with an offset into its buffer
    mixed = hashes.mix(hashes.hash_texts(part) ^ hashes.mix(np.array([3], np.uint64)))
    assert mixed.tolist() == [hashed(3, text) for text in texts[skip:]]
