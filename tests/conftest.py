"""Fixtures: a tiny encoder made on the spot, texts it knows, and a cache of its own per test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

NAMES = [a + b + c for a in ("ba", "do", "ki", "lu") for b in ("me", "na", "ri") for c in "xsgt"]
PLACES = ["forest", "river", "desert", "city", "cave", "meadow", "harbour", "valley"]
LONGEST = (  # files of tests, by what they take
    *("compare", "browser", "store_processes", "processes", "parity", "room"),
    *("stops", "kills", "average", "forecast", "offline", "remine", "distil", "mine_launched"),
    *("mine_stage", "benchmark_inference", "benchmark_training", "benchmark_comparison"),
)
Run = Callable[..., tuple[int, str, str]]  # words typed -> status, stdout, stderr
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def question(number: int) -> str:
    return f"where does the {NAMES[number]} live"


def answer(number: int) -> str:
    return f"a {NAMES[number]} is an animal of the {PLACES[number % len(PLACES)]}"


def write_lines(path: Path, rows: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_beir(folder: Path, judged: Mapping[str, Iterable[tuple[int, int]]]) -> Path:
    """All questions and answers as a BEIR folder; of each split, who is answered by what."""
    (folder / "qrels").mkdir(parents=True)
    numbers = range(len(NAMES))
    write_lines(folder / "corpus.jsonl", ({"_id": f"d{n}", "text": answer(n)} for n in numbers))
    write_lines(folder / "queries.jsonl", ({"_id": f"q{n}", "text": question(n)} for n in numbers))
    for split, pairs in judged.items():
        lines = "".join(f"q{q}\td{d}\t1\n" for q, d in pairs)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def write_task(folder: Path, split: str = "dev") -> Path:
    """A BEIR folder with the answer to every question."""
    return write_beir(folder, {split: [(n, n) for n in range(len(NAMES))]})


def weights(checkpoint: Path) -> dict[str, Any]:
    """Name -> tensor of a checkpoint's model."""
    from safetensors.torch import load_file

    return load_file(checkpoint / "model" / "model.safetensors")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker is left with one at the end."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def no_shared_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fixtures that live longer than a test do not read the user's cache either."""
    os.environ["TERCET_CACHE"] = str(tmp_path_factory.mktemp("session-cache"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what another, or the user, has cached."""
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Type a command in an empty folder; get status, standard output and standard error."""
    from tercet import cli

    monkeypatch.chdir(tmp_path)

    def type_command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tercet", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return type_command


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Give a file system of so many bytes; skipped where mounting is not allowed."""
    place = tmp_path / "disk"

    def mount(size: int) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting is not allowed here")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A BEIR folder to export with, and no filling up to a thousand texts."""
    from tercet.data import RetrievalTask, Texts, write_task

    monkeypatch.setattr("tercet.export.sample.LEAST", 0)
    monkeypatch.setattr("tercet.export.parity.ASKED", 12)
    numbers = range(len(NAMES))
    queries = Texts([f"q{n}" for n in numbers], [question(n) for n in numbers])
    documents = Texts([f"d{n}" for n in numbers], [answer(n) for n in numbers])
    qrels = {f"q{n}": {f"d{n}": 1} for n in numbers}
    folder = tmp_path / "animals"
    write_task(RetrievalTask(folder.name, "test", documents, queries, qrels), folder)
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """48 animals, 36 for training; every third of their questions has the next answer as well."""
    pairs = [(n, d) for n in range(36) for d in (n, n + 1 if n % 3 == 0 else n)]
    tested = [(n, n) for n in range(36, 48)]
    return write_beir(tmp_path / "animals", {"train": dict.fromkeys(pairs), "test": tested})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The tiny model is too small to share out: on a busy machine threads wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers, 32 wide, saved as a sentence-transformers folder.

    Its weights come from NumPy's generator, name by name, so that they do not depend on how
    transformers initialises.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    words = sorted({w for n in range(len(NAMES)) for w in f"{question(n)} {answer(n)}".split()})
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [":"]
    entries = [*SPECIAL, *letters, *(f"##{c}" for c in letters), *(w for w in words if len(w) > 1)]
    vocabulary = {entry: place for place, entry in enumerate(entries)}
    settings = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    body = BertModel(settings)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in sorted(body.named_parameters()):
            if "LayerNorm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.copy_(torch.from_numpy(random.normal(0, 0.1, tuple(parameter.shape))))
    body.save_pretrained(folder / "body")
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder / "body")
    parts = [Transformer(str(folder / "body")), Pooling(32, pooling_mode="mean"), Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model, one of its weights a little off."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    with torch.no_grad():
        next(model.parameters())[9, 3] += 0.25
    folder = tmp_path_factory.mktemp("other") / "model"
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 questions with their answers, as JSONL."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = ({"query": question(n), "positive": answer(n)} for n in range(len(NAMES)))
    return write_lines(path, rows)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A BEIR folder of 48 documents and 48 queries, one of which is judged."""
    return write_beir(tmp_path / "animals", {"test": [(1, 1)]})


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A cross-encoder of two layers that has learnt to like earlier places better."""
    import torch
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("judge")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    settings.num_labels = 1
    body = BertForSequenceClassification(settings)
    body.save_pretrained(folder / "body")
    tokenizer.save_pretrained(folder / "body")
    model = CrossEncoder(str(folder / "body"), num_labels=1, device="cpu")
    random = np.random.default_rng(0)
    pairs = random.integers(0, len(NAMES), (640, 2))
    rows = {
        "query": [question(a) for a, _ in pairs],
        "document": [answer(b) for _, b in pairs],
        "label": [1 - (b % len(PLACES)) / len(PLACES) for _, b in pairs.tolist()],
    }
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder / "training"),
        num_train_epochs=3,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        loss=BinaryCrossEntropyLoss(model),
    )
    trainer.train()
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Any:
    """Two tiny models compared on two collections: a `tests.comparison.Comparison`."""
    from tests.comparison import make_comparison

    return make_comparison(tmp_path_factory.mktemp("comparison"), tiny_model)
