"""What a mining run says of itself: counts, distributions and samples to read, as plain JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Indices
from tercet.mining.facts import Asked
from tercet.mining.select import ABSENT, CODE, KEPT, RULES, VERDICTS
from tercet.mining.settle import Chosen, Settled
from tercet.mining.table import OUTCOMES

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
BINS = 40  # of each histogram, at most
SAMPLES = 50  # kept negatives to read
OTHERS = 10  # vetoed and relabelled candidates to read
CUT = 1_200  # characters of a text in a sample


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
    by_verdict = np.bincount(verdicts.ravel(), minlength=len(VERDICTS))
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
    verdicts, negatives, rescored = settled.verdicts, settled.negatives, settled.rescored
    dropped = (verdicts != KEPT) & (verdicts != ABSENT)
    scores = {
        "positive": settled.lowest,
        "kept": negatives.scores,
        "dropped": np.asarray(settled.found.scores)[dropped],
    }
    depth = verdicts.shape[1]
    ranks = {"kept": negatives.ranks[negatives.ranks > 0], "dropped": np.nonzero(dropped)[1] + 1}
    width = -(-depth // BINS)  # ranks in a bin
    by_rank = np.arange(1, depth + width + 1, width)
    charts = {"scores": _histogram(scores, _span(scores)), "ranks": _histogram(ranks, by_rank)}
    if rescored is not None and negatives.rescores is not None:
        rescores = {
            "positive": rescored.positives,
            "kept": negatives.rescores,
            "all scored": rescored.candidates[~np.isnan(rescored.candidates)],
        }
        likely = {name: rescored.scorer.probabilities(s) for name, s in rescores.items()}
        charts["probabilities"] = _histogram(likely, np.linspace(0, 1, BINS + 1))
    return charts


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


def _span(groups: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Edges of `BINS` bins that hold every score, and are no narrower than can be told apart."""
    filled = [values for values in groups.values() if len(values)]
    ends = [end for values in filled for end in (values.min(), values.max())]
    low, high = (float(min(ends)), float(max(ends))) if ends else (0.0, 1.0)
    return np.linspace(low, max(high, low + 1e-3 * max(1.0, abs(low))), BINS + 1)


def _histogram(
    groups: Mapping[str, NDArray[Any]], edges: NDArray[np.floating]
) -> dict[str, list[float]]:
    counted = {name: np.histogram(values, edges)[0].tolist() for name, values in groups.items()}
    return {"edges": [round(float(edge), 6) for edge in edges], **counted}
