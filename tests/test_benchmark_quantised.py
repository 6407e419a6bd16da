"""benchmarks/quantised.py: what short vectors keep, measured as `tercet compare` searches them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quantised import (
    FLOAT,
    INT8,
    PER_CALL,
    RESCORED,
    measure,
    methods,
    tables,
    verdict,
)
from tercet.configs import ModelConfig
from tercet.data import read_task
from tercet.evaluation.compression import compressions
from tercet.models import load_encoder, vectors
from tercet.models.quantise import calibrate
from tests.comparison import collection

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_verdict_on_int8_is_that_of_the_numbers() -> None:
    def said(**others: float) -> str:
        kept = {FLOAT: 1.0, INT8: 0.998, RESCORED: 0.9999, "int8, other": 0.99, PER_CALL: 0.99}
        kept |= {name.replace("_", " "): share for name, share in others.items()}
        return verdict({"overall": {name: {"kept": share} for name, share in kept.items()}})

    assert said() == f'Of the int8 forms, the default, "{INT8}", keeps most, 99.80%.'
    near, far = said(near_int8=0.9985), said(far_int8=0.9995)
    assert '"near int8" keeps most, 99.85%' in near and "0.05 points less, within the 0.1" in near
    assert "99.80%, 0.15 points less, which is more than the 0.1 that count as equal." in far
    both = said(near_int8=0.9985, **{PER_CALL: 1.001})
    assert f'"{PER_CALL}" keeps most, 100.10%' in both and "an index of them cannot grow" in both
    assert 'of the others, "near int8" keeps most, 99.85%' in both


def test_quantisers_are_compared_on_the_same_vectors() -> None:
    pytest.importorskip("faiss", reason="sentence-transformers' own search needs it")

    random = np.random.default_rng(0)
    documents = random.normal(size=(300, 24)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents[:40] + 0.02 * random.normal(size=(40, 24)).astype(np.float32)
    ways = methods(queries, documents, calibrate(documents), calibrate(1.2 * documents[:100]))
    found = {name: search()[1] for name, (search, _) in ways.items()}
    ours, theirs = found["int8, min and max of each dimension"], found["ST int8, ranges given"]
    np.testing.assert_array_equal(ours, theirs)
    for name, positions in found.items():
        assert positions.shape == (40, 10), name
        shares = [np.isin(e, p).mean() for e, p in zip(found[FLOAT], positions, strict=True)]
        assert np.mean(shares) > 0.3, name
        assert name == "bits" or (positions[:, 0] == np.arange(40)).mean() > 0.8, name


def test_quantised_vectors_are_those_that_are_compared(tmp_path: Path, tiny_model: Path) -> None:
    """What the table says of int8 and of bits is what `tercet compare` does."""
    pytest.importorskip("faiss", reason="sentence-transformers' own search needs it")

    task = read_task(collection(tmp_path / "a", 130))
    (found,) = measure([task], str(tiny_model))["collections"].values()
    encoder = load_encoder(ModelConfig(path=str(tiny_model)))
    queries = vectors(encoder, task.queries.texts, "query")
    documents = vectors(encoder, task.documents.texts, "document")
    forms = compressions(task, queries, documents, unit=True, dims=())
    means = {(form.precision, form.rescored): form.mean for form in forms}
    for name, form in (
        (FLOAT, ("float32", False)),
        (INT8, ("int8", False)),
        ("bits", ("binary", False)),
        (RESCORED, ("binary", True)),
    ):
        assert found[name]["mean"] == pytest.approx(means[form], abs=1e-12), name


def test_what_quantised_vectors_keep_is_told_over_all_collections(
    tmp_path: Path, tiny_model: Path
) -> None:
    pytest.importorskip("faiss", reason="sentence-transformers' own search needs it")

    tasks = [read_task(collection(tmp_path / name, size)) for name, size in (("a", 60), ("b", 90))]
    found = measure(tasks, str(tiny_model))
    assert list(found["collections"]) == ["a", "b"]
    for method, whole in found["overall"].items():
        each = [one[method] for one in found["collections"].values()]
        assert whole["kept"] == pytest.approx(np.mean([one["kept"] for one in each]))
        exact = [one[FLOAT]["mean"] for one in found["collections"].values()]
        means = [one["mean"] for one in each]
        assert whole["delta"]["mean"] == pytest.approx(np.mean(means) - np.mean(exact))
    text = tables(found)["quantised"]
    assert text.startswith("| Vectors | Bytes | a | b | Mean | nDCG@10 lost or won |")
    assert "| int8, one scale | 32 |" in text
    assert "| int8, one scale of another collection |" in text
    assert "| bits | 4 |" in text and "+0.0000 [+0.0000, +0.0000]" in text
    assert [one["met"] for one in found["targets"]] == [
        found["overall"][name]["kept"] >= least
        for name, least in (("int8, one scale", 0.99), ("bits, rescored from int8", 0.97))
    ]
    assert "share kept by int8, one scale at least 0.99: " in text
