"""Codes that can be compared: rounding, one rule for both sides, ranges that stay with a model."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers.util import quantize_embeddings

from tercet.errors import UserError
from tercet.mining import top_k
from tercet.models import quantise
from tercet.models.quantise import (
    Ranges,
    bits,
    calibrate,
    int8_codes,
    int8_codes_min_max,
    int8_codes_per_vector,
    numbers,
    read_ranges,
    signs,
    truncated,
    vector_bytes,
    write_ranges,
)


def units(rows: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors whose dimensions differ in mean and size, as those of models do."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, width)) * (1 + np.arange(width) % 5) + np.arange(width) % 3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "BLOCK", 7)


@pytest.mark.parametrize("rows", [1, 6, 7, 15])
def test_a_code_is_the_nearest_of_255_levels(rows: int) -> None:
    vectors = units(rows, 12)
    ranges = calibrate(vectors)
    codes = int8_codes(vectors, ranges)
    want = [[round(float(x) * 127 / float(np.abs(vectors).max())) for x in row] for row in vectors]
    assert codes.dtype == np.int8 and np.abs(codes - np.array(want)).max() <= 1  # float32 halves
    step = ranges.largest / 127
    assert np.abs(numbers(codes)[0:rows] * step - vectors).max() <= step / 2 * (1 + 1e-5)
    np.testing.assert_array_equal(int8_codes(-vectors, ranges), -codes)


def test_a_vector_s_own_scale_fits_its_own_largest_number() -> None:
    vectors = units(20, 9) * np.logspace(-3, 3, 20, dtype=np.float32)[:, None]
    vectors[4] = 0
    codes, scales = int8_codes_per_vector(vectors)
    largest = np.abs(vectors).max(axis=1)
    np.testing.assert_array_equal(np.abs(codes).max(axis=1), np.where(largest > 0, 127, 0))
    error = np.abs(numbers(codes, scales)[0:20] - vectors).max(axis=1)
    assert (error <= largest / 127 / 2 * (1 + 1e-5)).all()


def test_min_max_codes_and_bits_are_those_of_sentence_transformers() -> None:
    sample, vectors = units(50, 20, 1), units(30, 20, 2)
    sample[:, 3] = 0.25  # a dimension without a range
    ranges = calibrate(sample)
    both = np.stack([ranges.low, ranges.high])
    np.testing.assert_array_equal(
        int8_codes_min_max(vectors, ranges), quantize_embeddings(vectors, "int8", ranges=both)
    )
    np.testing.assert_array_equal(bits(vectors), quantize_embeddings(vectors, "ubinary"))


def test_codes_do_not_depend_on_what_else_is_coded() -> None:
    """Unlike ranges taken from each call: a query alone gets the codes it has among others."""
    vectors, ranges = units(40, 16), calibrate(units(200, 16, 3))
    for coded in (
        lambda rows: int8_codes(rows, ranges),
        lambda rows: int8_codes_min_max(rows, ranges),
        lambda rows: int8_codes_per_vector(rows)[0],
        bits,
    ):
        whole = coded(vectors)
        for row in (0, 17, 39):
            np.testing.assert_array_equal(coded(vectors[row : row + 1])[0], whole[row])


def test_what_exceeds_the_ranges_is_clipped() -> None:
    low, high, far = (
        np.array(values, dtype=np.float32) for values in ([-0.5, -0.1], [0.2, 0.4], [[2.0, -9.0]])
    )
    ranges = Ranges(low, high)
    assert ranges.largest == 0.5
    assert int8_codes(far, ranges).tolist() == [[127, -127]]
    assert int8_codes_min_max(far, ranges).tolist() == [[127, -128]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_products_of_signs_count_equal_bits(rows: int, width: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    packed = bits(vectors)
    assert packed.shape == (rows, vector_bytes("binary", width))
    rowwise = signs(packed, width)[0:rows]
    different = (np.sign(vectors)[:, None] != np.sign(vectors)[None]).sum(axis=2)
    np.testing.assert_array_equal(rowwise @ rowwise.T, width - 2 * different)


def test_int8_finds_what_float32_finds() -> None:
    documents, queries = units(2_000, 48, 4), units(50, 48, 5)
    ranges = calibrate(documents)
    _, exact = top_k(queries, documents, 10)
    per_vector = int8_codes_per_vector(documents)
    for q, d in (
        (numbers(int8_codes(queries, ranges)), numbers(int8_codes(documents, ranges))),
        (queries, numbers(*per_vector)),
    ):
        _, found = top_k(q, d, 10)
        assert np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]) > 0.95


def test_a_cut_vector_is_a_unit_vector_again() -> None:
    vectors = units(15, 12)
    cut = truncated(vectors, 5, unit=True)
    assert cut.shape == (15, 5) and len(cut) == 15
    want = vectors[:, :5] / np.linalg.norm(vectors[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(cut[3:15], want[3:15], rtol=1e-6)
    np.testing.assert_array_equal(truncated(vectors, 5, unit=False)[0:15], vectors[:, :5])


def test_ranges_come_from_a_seeded_sample() -> None:
    vectors = units(300, 6)
    whole = calibrate(vectors)
    np.testing.assert_array_equal(whole.low, vectors.min(axis=0))
    np.testing.assert_array_equal(whole.high, vectors.max(axis=0))
    some, again = (calibrate(vectors, sample=20, seed=3) for _ in range(2))
    np.testing.assert_array_equal(some.low, again.low)
    assert (some.low >= whole.low).all() and (some.low > whole.low).any()


def test_vectors_that_give_no_ranges_are_refused() -> None:
    with pytest.raises(UserError, match="no vectors to calibrate on"):
        calibrate(np.empty((0, 4), dtype=np.float32))
    bad = units(10, 4)
    bad[8, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        calibrate(bad)


def test_ranges_stay_with_the_model(tmp_path: Path) -> None:
    assert read_ranges(tmp_path, "abc") == {}
    wanted = {w: calibrate(units(20, w)) for w in (8, 4)}
    path = write_ranges(tmp_path, wanted, "abc")
    found = read_ranges(tmp_path, "abc")
    assert list(found) == [8, 4]
    for width, ranges in wanted.items():
        np.testing.assert_array_equal(found[width].low, ranges.low)
        np.testing.assert_array_equal(found[width].high, ranges.high)
    with pytest.raises(UserError, match="other weights"):
        read_ranges(tmp_path, "abd")
    whole = json.loads(path.read_text())
    for change, said in (
        ({"format": 99}, "another version"),
        ({"widths": {"8": {"low": [1], "high": [2]}}}, "width 8 has"),
        ({"widths": 3}, "not readable"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=f"{said}.*calibrate again"):
            read_ranges(tmp_path, "abc")
    path.write_text("{")
    with pytest.raises(UserError, match="not readable"):
        read_ranges(tmp_path, "abc")
