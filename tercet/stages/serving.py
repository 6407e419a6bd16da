"""A page to try one or two models on a collection: `tercet serve`."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.data.beir import read_folder, read_qrels, splits
from tercet.data.rows import Texts
from tercet.errors import UserError
from tercet.mining import top_k
from tercet.models import Vectors, default_device, load_encoder, single_encoder, vectors
from tercet.processes import one_process
from tercet.progress import quiet, say
from tercet.report.search import search_page
from tercet.stages.names import name_of, refuse_models
from tercet.stages.server import MOST_HITS, SearchServer

EXAMPLES = 5  # queries of the collection that the page offers


@dataclass(frozen=True)
class Collection:
    """What is searched, and queries whose answers are known."""

    name: str
    documents: Texts
    queries: tuple[str, ...] = ()
    answers: dict[str, set[str]] = field(default_factory=dict)  # query's text -> ids of documents


class Searcher:
    """One model with the vectors of a collection; may be asked from several threads."""

    def __init__(self, name: str, encoder: SentenceTransformer, documents: Vectors) -> None:
        self.name, self._documents = name, documents
        self._encode = single_encoder(encoder, "query")
        self._alone = threading.Lock()  # no two threads may use a tokenizer

    def __call__(self, query: str, k: int) -> tuple[list[float], list[int]]:
        """Scores and positions of the k best documents, best first."""
        with self._alone, quiet():
            asked = self._encode(query)
            # One query is a product with a vector: memory is read once, wherever the model is.
            scores, positions = top_k(asked, self._documents, k, tile=(1, 8_192), device="cpu")
        return scores[0].tolist(), positions[0].tolist()


class Search:
    """Queries to answers, as JSON and as a page."""

    def __init__(self, collection: Collection, searchers: Sequence[Searcher]) -> None:
        self._collection, self._searchers = collection, searchers

    def answer(self, query: str, k: int) -> dict[str, Any]:
        """What every model finds; a hit's `elsewhere` is its rank with the other model."""
        answers = [self._ask(searcher, query, k) for searcher in self._searchers]
        ranks = [{hit["id"]: hit["rank"] for hit in answer["hits"]} for answer in answers]
        for place, answer in enumerate(answers):
            for hit in answer["hits"] if len(answers) == 2 else ():
                hit["elsewhere"] = ranks[1 - place].get(hit["id"])
        return {"query": query, "k": k, "answers": answers}

    def page(self, query: str, k: int) -> str:
        """The page, with the answer to `query` if there is one."""
        return search_page(
            collection=self._collection.name,
            documents=len(self._collection.documents),
            models=[searcher.name for searcher in self._searchers],
            examples=self._collection.queries[:EXAMPLES],
            found=self.answer(query, k) if query.strip() else None,
        )

    def _ask(self, searcher: Searcher, query: str, k: int) -> dict[str, Any]:
        start = time.perf_counter()
        scores, positions = searcher(query, min(k, MOST_HITS))
        spent = time.perf_counter() - start
        documents, known = self._collection.documents, self._collection.answers.get(query)
        hits = [
            {
                "rank": rank,
                "id": documents.ids[position],
                "score": score,
                "text": documents.texts[position],
                "relevant": None if known is None else documents.ids[position] in known,
                "elsewhere": None,
            }
            for rank, (score, position) in enumerate(zip(scores, positions, strict=True), start=1)
        ]
        return {"model": searcher.name, "milliseconds": 1000 * spent, "hits": hits}


def serve(
    models: Sequence[str],
    folder: Path,
    *,
    split: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    trust_remote_code: bool = False,
) -> None:
    """Serve a search page over a BEIR folder until interrupted.

    The port is taken before any model is loaded. Raises UserError under a launcher, for more than
    two models, a model or folder that is not there, and a port that is in use.
    """
    one_process("serve")
    if not 1 <= len(models) <= 2:
        raise UserError(f"serve shows one model, or two side by side; got {len(models)}")
    refuse_models(models)
    collection = read_collection(folder, split)
    with SearchServer(host, port) as server:
        loaded = [load_searcher(path, collection, trust_remote_code) for path in models]
        server.search = Search(collection, loaded)
        say(f"searching {collection.name} at {server.url}  (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def read_collection(path: Path, split: str | None = None) -> Collection:
    """The documents of a BEIR folder, and the queries of `split` (None: test, else its first)."""
    folder = read_folder(path, empty_documents=True)
    assert folder is not None  # a missing folder was refused
    documents = Texts(list(folder.documents), list(folder.documents.values()))
    there = splits(path)
    split = split or ("test" if "test" in there else next(iter(there), None))
    qrels = (read_qrels(folder, split) if split else None) or {}
    answers: dict[str, set[str]] = {}
    for query, grades in qrels.items():
        relevant = {document for document, grade in grades.items() if grade > 0}
        answers.setdefault(folder.queries[query], set()).update(relevant)
    return Collection(path.resolve().name, documents, tuple(answers), answers)


def load_searcher(path: str, collection: Collection, trust_remote_code: bool = False) -> Searcher:
    """Load a model and take the collection's vectors from the store, or make them."""
    config = ModelConfig(path=path, trust_remote_code=trust_remote_code)
    encoder, name = load_encoder(config, "model").to(default_device()), name_of(path)
    found = vectors(encoder, collection.documents.texts, "document", title=f"{name}: documents")
    return Searcher(name, encoder, found)
