"""What a mining run says of itself: counts, distributions and samples to read, as plain JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Indices
from tercet.mining.facts import Asked, blocks
from tercet.mining.rescore import Rescored
from tercet.mining.select import ABSENT, CODE, KEPT, RULES, VERDICTS
from tercet.mining.settle import Chosen, Settled
from tercet.mining.table import OUTCOMES

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
BINS = 40  # of each histogram, at most
SAMPLES = 50  # kept negatives to read
OTHERS = 10  # vetoed and relabelled candidates to read
CUT = 1_200  # characters of a text in a sample
Parts = Iterable[NDArray[Any]]  # numbers a block of queries at a time: all may not fit into memory


@dataclass(frozen=True)
class MinedCounts:
    """What came of it, over all queries asked by a row."""

    queries: int
    candidates: int
    kept: int  # negatives, those that fill a list included
    filled: int  # of those, drawn from outside the candidates
    relabelled: int  # new positives
    dropped: dict[str, int]  # rule -> candidates, in the order the rules are applied
    short: int  # queries with fewer negatives than asked for, those without any included
    without: int  # queries without any
    given_up: int  # queries not to be trained on


def count(settled: Settled, outcome: Indices, wanted: int) -> MinedCounts:
    """Count verdicts and outcomes (Q,); `wanted` negatives were asked for."""
    verdicts, negatives = settled.verdicts, settled.negatives
    by_verdict = np.zeros(len(VERDICTS), dtype=np.int64)
    for block in blocks(len(verdicts)):
        by_verdict += np.bincount(verdicts[block].ravel(), minlength=len(VERDICTS))
    dropped = {rule: int(by_verdict[CODE[rule]]) for rule in RULES}
    kept = negatives.counts(len(verdicts))
    return MinedCounts(
        queries=len(verdicts),
        candidates=int(verdicts.size - by_verdict[ABSENT]),
        kept=len(negatives),
        filled=int((negatives.ranks == 0).sum()),
        relabelled=dropped["relabelled"],
        dropped=dropped,
        short=int((kept < wanted).sum()),
        without=int((kept == 0).sum()),
        given_up=int((outcome == OUTCOMES.index("dropped")).sum()),
    )


def histograms(settled: Settled) -> dict[str, Any]:
    """By group, {"edges": [...], group: counts}: of scores, ranks and probabilities.

    Scores are those of the lowest positive of each query, the negatives kept and the candidates
    dropped; ranks count from 1; probabilities are the cross-encoder's, of all it was asked about.
    """
    negatives, rescored = settled.negatives, settled.rescored
    few = {"positive": [settled.lowest], "kept": [negatives.scores]}
    every = (scores for parts in (*few.values(), _dropped_scores(settled)) for scores in parts)
    scores = _histogram(few | {"dropped": _dropped_scores(settled)}, _span(every))
    depth = settled.verdicts.shape[1]
    width = -(-depth // BINS)  # ranks in a bin
    ranks = {"kept": [negatives.ranks[negatives.ranks > 0]], "dropped": _dropped_ranks(settled)}
    by_rank = np.arange(1, depth + width + 1, width)
    charts = {"scores": scores, "ranks": _histogram(ranks, by_rank)}
    if rescored is not None and negatives.rescores is not None:
        likely = {
            "positive": [rescored.scorer.probabilities(rescored.positives)],
            "kept": [rescored.scorer.probabilities(negatives.rescores)],
            "all scored": _probabilities(rescored),
        }
        charts["probabilities"] = _histogram(likely, np.linspace(0, 1, BINS + 1))
    return charts


def _dropped_scores(settled: Settled) -> Parts:
    for block in blocks(len(settled.verdicts)):
        yield np.asarray(settled.found.scores[block])[_dropped(settled.verdicts[block])]


def _dropped_ranks(settled: Settled) -> Parts:
    for block in blocks(len(settled.verdicts)):
        yield np.nonzero(_dropped(settled.verdicts[block]))[1] + 1


def _dropped(verdicts: NDArray[np.int8]) -> NDArray[np.bool_]:
    return (verdicts != KEPT) & (verdicts != ABSENT)


def _probabilities(rescored: Rescored) -> Parts:
    """Of all candidates that the cross-encoder was asked about."""
    for block in blocks(len(rescored.candidates)):
        scores = rescored.candidates[block]
        yield rescored.scorer.probabilities(scores[~np.isnan(scores)])


def percentiles(values: NDArray[np.floating]) -> dict[str, float]:
    """Of scores; empty where there is none."""
    if len(values) == 0:
        return {}
    found = np.percentile(values.astype(np.float64), PERCENTILES)
    return {str(p): round(float(v), 6) for p, v in zip(PERCENTILES, found, strict=True)}


def samples(settled: Settled, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Some negatives that were kept, and some candidates the cross-encoder spoke against, to read.

    Drawn by `seed`, each beside the positive least like its query. Texts are cut to `CUT`
    characters.
    """
    groups = {
        "kept": (settled.negatives, SAMPLES),
        "relabelled": (settled.with_verdict("relabelled"), OTHERS),
        "veto": (settled.with_verdict("veto"), OTHERS),
    }
    found = {}
    for name, (chosen, limit) in groups.items():
        draw = np.random.default_rng(seed).permutation(len(chosen))[:limit]
        found[name] = [_sample(settled, chosen, number) for number in sorted(draw.tolist())]
    return found


def _sample(settled: Settled, chosen: Chosen, number: int) -> dict[str, Any]:
    asked, rescored = settled.asked, settled.rescored
    query = int(chosen.queries[number])
    first, last = asked.positives.offsets[query : query + 2]
    lowest = int(first + settled.of_positives[first:last].argmin())
    positive, document = asked.positives.values[lowest], chosen.documents[number]
    found = {
        "query_id": asked.ids[query],
        "query": _cut(asked.texts[query]),
        "positive": _shown(asked, int(positive), settled.of_positives[lowest]),
        "document": _shown(asked, int(document), chosen.scores[number]),
        "rank": int(chosen.ranks[number]),
    }
    if rescored is not None and chosen.rescores is not None:
        scores = {"positive": rescored.positives[lowest], "document": chosen.rescores[number]}
        for side, score in scores.items():
            found[side]["probability"] = round(float(rescored.scorer.probabilities(score)), 4)
    return found


def _shown(asked: Asked, document: int, score: np.float32) -> dict[str, Any]:
    id_, text = asked.documents.ids[document], asked.documents.texts[document]
    return {"id": id_, "text": _cut(text), "score": round(float(score), 4)}


def _cut(text: str) -> str:
    return text if len(text) <= CUT else f"{text[:CUT]} ..."


def _span(parts: Parts) -> NDArray[np.float64]:
    """Edges of `BINS` bins that hold every score, and are no narrower than can be told apart."""
    ends = [end for scores in parts if len(scores) for end in (scores.min(), scores.max())]
    low, high = (float(min(ends)), float(max(ends))) if ends else (0.0, 1.0)
    return np.linspace(low, max(high, low + 1e-3 * max(1.0, abs(low))), BINS + 1)


def _histogram(groups: Mapping[str, Parts], edges: NDArray[Any]) -> dict[str, list[float]]:
    counted = {}
    for name, parts in groups.items():
        counts = np.zeros(len(edges) - 1, dtype=np.int64)
        for part in parts:
            counts += np.histogram(part, edges)[0]
        counted[name] = counts.tolist()
    return {"edges": [round(float(edge), 6) for edge in edges], **counted}
