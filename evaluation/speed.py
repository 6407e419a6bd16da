"""Speed of several models side by side: rounds in turns, so that other work falls on all alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from tercet.errors import UserError
from tercet.models import Role, encode, single_encoder
from tercet.progress import progress, quiet

DOCUMENTS, QUERIES = 2_000, 4_000  # distinct texts, spread over all, that are encoded in batches
SINGLE = 50  # queries timed one by one in each round
WARM_UP = 5  # of them asked before the clock starts: the first calls fill caches


def rates(
    models: Mapping[str, SentenceTransformer],
    documents: Sequence[str],
    queries: Sequence[str],
    rounds: int,
) -> dict[str, Any]:
    """Texts per second and milliseconds of a single query of every model, taking turns.

    For each model `documents_per_second`, `queries_per_second`, the seconds of every round,
    `p50_ms` of `single_encoder`, and `..._times_faster`: medians over rounds of the ratio to the
    first model in the same round. Raises UserError if there is no text.
    """
    shown, asked = drawn_evenly(documents, DOCUMENTS), drawn_evenly(queries, QUERIES)
    first = next(iter(models))
    speed: dict[str, Any] = {name: {} for name in models}
    sides: dict[Role, list[str]] = {"document": shown, "query": asked}
    for role, texts in sides.items():
        what = "documents" if role == "document" else "queries"
        times = alternate(
            {
                name: (lambda model=model, texts=texts, role=role: encode(model, texts, role))
                for name, model in models.items()
            },
            rounds,
        )
        for name, spent in medians(times).items():
            speed[name][f"{what}_per_second"] = len(texts) / spent
            speed[name][f"{what}_times_faster"] = ratio(times, first, name)
            speed[name][f"{what}_seconds"] = times[name]
    single = {name: single_encoder(model, "query") for name, model in models.items()}
    for name, waits in latencies(single, asked[:SINGLE], rounds).items():
        speed[name]["p50_ms"] = 1_000 * statistics.median(waits)
    return speed


def latencies(
    ask: Mapping[str, Callable[[str], Any]], queries: Sequence[str], rounds: int = 1
) -> dict[str, list[float]]:
    """Seconds from one query to its vector, query by query, each way of asking in its turn.

    A turn begins with WARM_UP queries that are not timed. No bar is drawn: that takes as long as
    a small model's query.
    """
    waits: dict[str, list[float]] = {name: [] for name in ask}
    with quiet():
        for _ in range(rounds):
            for name, answer in ask.items():
                for query in queries[:WARM_UP]:
                    answer(query)
                for query in queries:
                    start = time.perf_counter()
                    answer(query)
                    waits[name].append(time.perf_counter() - start)
    return waits


def drawn_evenly(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` distinct texts, evenly drawn.

    >>> drawn_evenly(["a", "b", "a", "c", "d"], 2)
    ['a', 'c']
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise UserError("no text to time")
    return distinct[:: -(-len(distinct) // count)]


def alternate(
    variants: Mapping[str, Callable[[], Any]], rounds: int, untimed: int = 1
) -> dict[str, list[float]]:
    """Seconds of every variant, each round running all of them in turn, some rounds untimed first.

    Whatever else the machine does then falls on all variants alike.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    with progress("rounds", (untimed + rounds) * len(variants)) as advance:
        for turn in range(untimed + rounds):
            for name, work in variants.items():
                spent = seconds(work)
                if turn >= untimed:
                    times[name].append(spent)
                advance(note=f"{name}: {spent:.3g} s")
    return times


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call, garbage collected before it and not during it.

    No bar is drawn within: on a terminal it would be timed with the work.
    """
    gc.collect()
    gc.disable()
    try:
        with quiet():
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
    finally:
        gc.enable()


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each variant's times."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of how many times longer `slow` took than `fast` in the same round.

    >>> ratio({"a": [4.0, 9.0, 6.0], "b": [2.0, 3.0, 3.0]}, "a", "b")
    2.0
    """
    return statistics.median(s / f for s, f in zip(times[slow], times[fast], strict=True))
