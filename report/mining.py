"""A mining run as one self-contained HTML page, made from its `mining.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tercet.mining.rescore import TOP_HITS
from tercet.report.pages import page

TEMPLATE = "mining.html.j2"
RULES = {
    "known": "answers the query, under whichever id its text stands",
    "repeat": "its text stood at a better rank already",
    "own": "is one of the row's own negatives, which stay whatever is mined",
    "near_duplicate": "cosine to a positive above {near_duplicate}",
    "window": "among the first {skip} unlabelled ones, or beyond rank {depth}",
    "max_score": "score above {max_score}",
    "min_score": "score below {min_score}",
    "absolute_margin": "score above the lowest positive's minus {absolute_margin}",
    "relative_margin": "score above {relative_margin} of the lowest positive's",
    "unscored": "the cross-encoder was not asked: beyond the first {rescore[depth]}",
    "relabelled": "the cross-encoder finds it an answer: above the lowest positive and "
    "{rescore[relabel_above]}; it becomes a positive",
    "veto": "the cross-encoder puts it above the lowest positive plus {rescore[veto_margin]}, or "
    "above {rescore[veto_above]}",
    "surplus": "fit, but {negatives} others were taken ({sampling})",
    "too_few": "its query had fewer than {negatives} fit candidates and was dropped",
}
CHARTS = {
    "scores": ("Scores", "Inner products of the mining model. Positive: the lowest of each query."),
    "ranks": ("Ranks", "Place among all candidates of the query, from 1."),
    "probabilities": ("Cross-encoder", "Its probability that the document answers the query."),
}
READINGS = {
    "kept": ("To read: kept", "Negative", "Drawn at random. Would any of them answer its query?"),
    "relabelled": ("To read: relabelled", "New positive", "Does each answer its query?"),
    "veto": ("To read: vetoed", "Vetoed", "The cross-encoder kept these out."),
}


def mining_page(found: Mapping[str, Any]) -> str:
    """The page as HTML: no scripts, no requests, every text escaped.

    `found` is what `mining.json` holds.
    """
    told = {name: _set(value) for name, value in found["settings"].items()}
    counts, candidates = found["counts"], max(1, found["counts"]["candidates"])
    kept = counts["kept"] - counts["filled"]
    return page(
        TEMPLATE,
        {"count": "{:,}".format, "percent": _percent},
        found=found,
        tiles=_tiles(counts),
        rate=found["false_negatives"],
        top_hits=TOP_HITS,
        rules=[
            {
                "name": name.replace("_", " "),
                "text": RULES[name].format(**told),
                "dropped": dropped,
                "share": dropped / candidates,
            }
            for name, dropped in counts["dropped"].items()
        ],
        kept=kept,
        kept_share=kept / candidates,
        charts=[_chart(name, chart) for name, chart in found["histograms"].items()],
        readings=[
            {"title": title, "role": role, "text": about, "samples": found["samples"][kind]}
            for kind, (title, role, about) in READINGS.items()
        ],
        settings=list(_flat(found["settings"])),
    )


def _set(value: Any) -> Any:
    """A setting as a sentence names it."""
    if isinstance(value, Mapping):
        return {name: _set(inner) for name, inner in value.items()}
    return "(not set)" if value is None else value


def _tiles(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    queries = max(1, counts["queries"])
    shown = {
        "queries": f"{counts['queries']:,}",
        "negatives": f"{counts['kept']:,}",
        "per query": f"{counts['kept'] / queries:.2f}",
        "filled at random": f"{counts['filled']:,}",
        "new positives": f"{counts['relabelled']:,}",
        "queries with too few": f"{counts['short']:,}",
        "queries with none": f"{counts['without']:,}",
        "queries dropped": f"{counts['given_up']:,}",
    }
    return list(shown.items())


def _chart(name: str, histogram: Mapping[str, Any]) -> dict[str, Any]:
    """Bars in a box of 100 x 100, one group below the other over the same axis."""
    title, text = CHARTS[name]
    edges = histogram["edges"]
    last = edges[-1] - 1 if name == "ranks" else edges[-1]  # rank bins end before their edge
    ticks = [edges[0], (edges[0] + last) / 2, last]
    groups = [
        _group(group, values, edges) for group, values in histogram.items() if group != "edges"
    ]
    return {
        "title": title,
        "text": text,
        "ticks": [f"{tick:.4g}" for tick in ticks],
        "groups": groups,
    }


def _group(name: str, values: Sequence[int], edges: Sequence[float]) -> dict[str, Any]:
    highest, span = max(values, default=0), edges[-1] - edges[0]
    bars = []
    for low, high, value in zip(edges, edges[1:], values, strict=False):
        height = 100 * value / max(1, highest)
        bars.append(
            {
                "x": round(100 * (low - edges[0]) / span, 3),
                "y": round(100 - height, 3),
                "width": round(92 * (high - low) / span, 3),
                "height": round(height, 3),
                "title": f"{low:.4g} to {high:.4g}: {value:,}",
            }
        )
    most = bars[values.index(highest)]["title"] if highest else "empty"
    return {
        "name": name,
        "style": name.replace(" ", "-"),
        "total": sum(values),
        "highest": highest,
        "label": f"Histogram of {name}: {sum(values):,} in all, most at {most}",
        "bars": bars,
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value in (None, []) else value


def _percent(share: float) -> str:
    return f"{share:.1%}"
