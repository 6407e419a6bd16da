"""From queries and vectors to negatives: find candidates, ask for opinions, apply the rules."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.data.rows import Indices, Ragged
from tercet.mining.candidates import MODEL, Candidates, Space, find_candidates, inner_products
from tercet.mining.facts import Asked, evidence, lowest_scores, positive_scores
from tercet.mining.rescore import Rescored, rescore, scores_of
from tercet.mining.select import CODE, label, outside, select
from tercet.models.cross import CrossScorer
from tercet.progress import progress

BLOCK = 4_096  # queries whose evidence is held at once


@dataclass(frozen=True)
class Chosen:
    """Documents taken for queries, N in all, those of a query together and in order."""

    queries: Indices  # (N,) ascending
    documents: Indices  # (N,)
    scores: NDArray[np.float32]  # (N,)
    ranks: NDArray[np.int64]  # (N,) among all candidates, from 1; 0 where it fills a list
    rescores: NDArray[np.float32] | None  # (N,) the cross-encoder's

    def __len__(self) -> int:
        return len(self.queries)

    def counts(self, total: int) -> Indices:
        """(total,) how many each query has."""
        return np.bincount(self.queries, minlength=total)


@dataclass(frozen=True)
class Settled:
    """What became of the C candidates of each of Q queries."""

    asked: Asked
    found: Candidates
    of_positives: NDArray[np.float32]  # (P,) scores of `asked.pairs`
    lowest: NDArray[np.float32]  # (Q,) score of the positive least like each query
    labels: NDArray[np.int8]  # (Q, C) verdicts of the label rules alone
    verdicts: NDArray[np.int8]  # (Q, C)
    rescored: Rescored | None
    negatives: Chosen  # kept, and what fills the lists of queries that kept too few

    def with_verdict(self, name: str) -> Chosen:
        """The candidates that a rule, or none, spoke against."""
        return _with_verdict(self.found, self.verdicts, self.rescored, name)


def settle(
    asked: Asked,
    spaces: Mapping[str, Space],
    config: MiningConfig,
    scorer: CrossScorer | None = None,
    cache: Path | None = None,
) -> Settled:
    """Mine for `asked` with the vectors of `spaces`, as `stage.mine` says."""
    space, lists = spaces[MODEL], cache and cache / "candidates"
    texts = asked.documents.texts
    found = find_candidates(spaces, asked.texts, texts, config, folder=lists)
    of_positives = positive_scores(asked, space)
    lowest = lowest_scores(asked, of_positives)
    labels = np.empty(found.positions.shape, dtype=np.int8)
    for block in _blocks(len(asked), "labels"):
        labels[block] = label(evidence(asked, found, space, lowest, block, config), config)
    rescored, pairs = None, cache and cache / "pairs"
    if scorer is not None:
        rescored = rescore(scorer, asked, found, labels, config.rescore.depth, folder=pairs)
    verdicts = np.empty_like(labels)
    for block in _blocks(len(asked), "rules"):
        opinion = rescored and rescored.opinion(asked, block)
        facts = evidence(asked, found, space, lowest, block, config)
        verdicts[block] = select(facts, config, opinion)
    negatives = _with_verdict(found, verdicts, rescored, "kept")
    if config.too_few == "fill":
        fill = _fill(asked, space, found, negatives, config)
        negatives = _joined(negatives, _rescored(fill, asked, scorer, pairs))
    return Settled(asked, found, of_positives, lowest, labels, verdicts, rescored, negatives)


def _with_verdict(
    found: Candidates, verdicts: NDArray[np.int8], rescored: Rescored | None, name: str
) -> Chosen:
    queries, columns = np.nonzero(verdicts == CODE[name])
    return Chosen(
        queries,
        np.asarray(found.positions[queries, columns]),
        np.asarray(found.scores[queries, columns]),
        columns + 1,
        None if rescored is None else rescored.candidates[queries, columns],
    )


def _fill(
    asked: Asked, space: Space, found: Candidates, negatives: Chosen, config: MiningConfig
) -> Chosen:
    """Documents from outside the candidates for queries with fewer negatives than asked for."""
    missing = config.negatives - negatives.counts(len(asked))
    same = asked.documents.same
    open_to_all = np.where(asked.held_out, -1, same)
    drawn = []
    for query in range(len(asked)):
        if missing[query] <= 0:
            drawn.append(np.zeros(0, dtype=np.int64))
            continue
        listed = np.asarray(found.positions[query])
        banned = [listed[listed >= 0], asked.positives[query], asked.own[query]]
        drawn.append(
            outside(
                int(missing[query]),
                open_to_all,
                same[np.concatenate(banned)],
                config.seed,
                int(asked.keys[query]),
            )
        )
    queries, documents = Ragged.of(drawn).take(np.arange(len(asked)))
    scores = inner_products(space, queries, documents)
    return Chosen(queries, documents, scores, np.zeros_like(queries), None)


def _rescored(
    fill: Chosen, asked: Asked, scorer: CrossScorer | None, folder: Path | None
) -> Chosen:
    """With the cross-encoder's scores, which a teacher has to give of every negative."""
    if scorer is None:
        return fill
    scores = scores_of(scorer, asked, fill.queries, fill.documents, folder=folder)
    return replace(fill, rescores=scores)


def _joined(first: Chosen, second: Chosen) -> Chosen:
    """Both, for each query those of `first` before those of `second`."""
    order = np.argsort(np.concatenate([first.queries, second.queries]), kind="stable")

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(first, name), getattr(second, name)])[order]

    with_rescores = first.rescores is not None and second.rescores is not None
    return Chosen(
        joined("queries"),
        joined("documents"),
        joined("scores"),
        joined("ranks"),
        joined("rescores") if with_rescores else None,
    )


def _blocks(total: int, title: str) -> Iterator[slice]:
    with progress(title, total) as advance:
        for start in range(0, total, BLOCK):
            block = slice(start, min(start + BLOCK, total))
            yield block
            advance(block.stop - block.start)
