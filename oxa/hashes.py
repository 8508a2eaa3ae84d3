"""Stable ids and the random numbers that are drawn from them: the same whatever the order, batch or machine."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's step: 2**64 over the golden ratio, made odd

_SENTENCE = re.compile(r"(?:^|(?<=[.?!:] ))[^\W\d_]{3,}(?![^\W\d_])")


def problem_id(question: str) -> str:
    """Stable id: hash of the question with the spelling normalised that changes no meaning.

    That is composed and decomposed letters, ligatures, full and half width, white space, and the capital of a
    sentence's first word if it has three letters or more. 2\u00b2 is not 22, \u00bd is not 12, X is not x.
    """
    text = unicodedata.normalize("NFC", question)
    text = text if text.isascii() else "".join(map(_plain_form, text))
    text = re.sub(r"\s+", " ", text).strip()
    return _sha256(_SENTENCE.sub(_uncapitalised, text)).hex()[:16]


def _plain_form(sign: str) -> str:
    kind, *parts = unicodedata.decomposition(sign).split(" ")
    is_ligature = kind == "<compat>" and unicodedata.category(sign) == "Ll" and len(parts) > 1
    return unicodedata.normalize("NFKC", sign) if is_ligature or kind in ("<wide>", "<narrow>") else sign


def _uncapitalised(word: re.Match[str]) -> str:
    return word[0].lower() if word[0][1:].islower() else word[0]


def response_id(problem: str, origin: str, model: str, key: str) -> str:
    """Stable id of a response; `key` tells the problem's responses apart (its text, or "seed/sample_index")."""
    return _sha256(problem, origin, model, key).hex()[:16]


def lot(seed: int, response_id: str) -> int:
    """What chance decides: a 64-bit hash, the same in every arm and whatever the order of rows."""
    return int.from_bytes(_sha256(str(seed), response_id)[:8], "big")


def stream_keys(seed: int, response_ids: Sequence[str]) -> Hashes:
    """[B]: where each response's stream of random numbers begins."""
    digests = b"".join(_sha256(str(seed), response_id)[:8] for response_id in response_ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def uniforms(keys: Hashes, step: int) -> npt.NDArray[np.float64]:
    """[B] in [0, 1): number `step` of each stream, the upper 53 bits of SplitMix64's output."""
    return (mix(keys + np.uint64(step * _GAMMA % 2**64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash_texts(ids: pa.StringArray) -> Hashes:
    """64-bit hash of each text: its length and its bytes, eight at a time, each multiplied and folded in."""
    if not len(ids):
        return np.empty(0, np.uint64)
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    text = np.append(np.frombuffer(data or b"", np.uint8)[: ends[-1]], np.zeros(8, np.uint8))
    words = np.ndarray((len(text) - 7,), "<u8", text, strides=(1,))  # the eight bytes from each position on
    lengths = np.diff(ends)
    tail = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # masks what belongs to the next text
    state = mix(lengths.astype(np.uint64))
    for k in range(0, int(lengths.max(initial=0)), 8):
        word = words[np.minimum(ends[:-1] + k, len(words) - 1)] & tail[np.clip(lengths - k, 0, 8)]
        state = np.where(lengths > k, mix(state ^ word), state)
    return state


def mix(x: Hashes) -> Hashes:
    """SplitMix64's output for the state x (Steele, Lea & Flood 2014): a bijection that spreads every bit over all."""
    x = x + np.uint64(_GAMMA)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sha256(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()
