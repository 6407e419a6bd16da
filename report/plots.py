"""The plots of a comparison, drawn from its `results.json`: SVG and PNG, light and dark."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tercet.files import whole_file, write_text
from tercet.report.cells import INDEX_NAMES, Json
from tercet.report.table import HEADINGS
from tercet.report.words import (
    cost_words,
    form_point,
    front_words,
    index_words,
    pareto,
    score_words,
    speed_words,
    win_words,
)

WIDTH = 6.4  # inches: readable at the width of a phone
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6fc9", "#7f8c8d")
PRECISIONS = {"float32": "o", "int8": "s", "binary": "^"}
KINDS = dict(zip(INDEX_NAMES, "osDv^<P", strict=True))
LONGEST_NAME = 40  # of a model, in a plot
THEMES = {
    "light": {"ink": "#1c2024", "soft": "#d8dce0"},
    "dark": {"ink": "#e6e8ea", "soft": "#363c42"},
}
NONE: Mapping[str, str] = {}
DOTS = 160  # of a PNG, per inch
ROOM = 1.2  # an axis from 0 ends so much beyond its largest value: discs are not cut


@dataclass(frozen=True)
class Plot:
    """A drawing in both themes, and what it shows in words."""

    name: str
    caption: str
    alt: str
    light: str  # SVG
    dark: str


def write_plots(found: Json, folder: Path) -> list[Plot]:
    """Draw all plots and write NAME.svg and NAME.png of each, the light theme on white.

    `found` is what `results.json` holds. Given the same numbers, the same bytes.
    """
    plots = []
    for name, (draw, caption, alt) in _wanted(found).items():
        drawn = {theme: _drawn(draw, found, theme) for theme in THEMES}
        svgs = {theme: svg for theme, (svg, _) in drawn.items()}
        plots.append(Plot(name, caption, alt, **svgs))
        write_text(folder / f"{name}.svg", svgs["light"])
        with whole_file(folder / f"{name}.png") as partial:
            partial.write_bytes(drawn["light"][1])
    return plots


def _wanted(found: Json) -> dict[str, tuple[Callable[[Figure, Json], None], str, str]]:
    """Name -> how to draw it, caption, words for those who do not see it."""
    metric = HEADINGS[found["metric"]]
    plots = {
        "scores": (
            draw_scores,
            "Scores of similar and dissimilar pairs: median, quartiles, 5 % and 95 %.",
            "Box plots. " + " ".join(score_words(found)),
        ),
        "size_speed": (
            draw_size_speed,
            "Size against speed; the larger the disc, the more dimensions.",
            "Bubbles. " + " ".join(speed_words(found)),
        ),
        "quality_cost": (
            draw_quality_cost,
            f"Mean {metric} with its 95 % interval against the median latency of a query.",
            "Points. " + " ".join(cost_words(found)),
        ),
        "quality_bytes": (
            draw_quality_bytes,
            f"Mean {metric} against bytes per document, those read in rescoring included; the line "
            "joins the forms that none beats at their size. Filled: rescored.",
            "Points. None beats these at their size: " + " ".join(front_words(found)),
        ),
    }
    if any(task["deltas"] for task in found["tasks"]):
        plots["wins"] = (
            draw_wins,
            f"{metric} minus that of {found['baseline']}, query by query, from worst to best.",
            "Sorted differences. " + " ".join(win_words(found)),
        )
    if any("indexes" in task for task in found["tasks"]):
        plots["indexes"] = (
            draw_indexes,
            "Recall@10 against exact search, and queries per second.",
            "Points. " + " ".join(index_words(found)),
        )
    return plots


def draw_scores(figure: Figure, found: Json) -> None:
    """Two boxes for each model, a row for each task."""
    for row, (task, axes) in enumerate(_rows(figure, found["tasks"], 0.8 * len(found["models"]))):
        for m, model in enumerate(task["contrast"]):
            for side, shift in (("similar", 0.2), ("dissimilar", -0.2)):
                boxes = axes.bxp(
                    [_box(model[side])],
                    positions=[-m + shift],
                    widths=0.3,
                    orientation="horizontal",
                    showfliers=False,
                    showmeans=True,
                    patch_artist=True,
                    meanprops={"marker": "|", "markeredgecolor": axes.xaxis.label.get_color()},
                )
                boxes["boxes"][0].set(
                    facecolor=_colour(m), alpha=0.85 if side == "similar" else 0.3
                )
        axes.set_yticks([-m for m in range(len(found["models"]))], _names(found))
        axes.set_title(f"{_text(task['name'])}: similar above, dissimilar below (pale)")
        if row == len(found["tasks"]) - 1:
            axes.set_xlabel("score (inner product)")


def draw_size_speed(figure: Figure, found: Json) -> None:
    """Megabytes against documents per second."""
    axes = _axes(figure, "MB of parameters", "documents per second")
    costs = [model["efficiency"] for model in found["models"]]
    for m, at in enumerate(costs):
        place = [at["megabytes"]], [at["documents_per_second"]]
        axes.scatter(*place, s=at["dimensions"] / 2, color=_colour(m), alpha=0.7)
    axes.set_xlim(0, ROOM * max(at["megabytes"] for at in costs))
    axes.set_ylim(0, ROOM * max(at["documents_per_second"] for at in costs))
    _legend(figure, axes, found)


def draw_quality_cost(figure: Figure, found: Json) -> None:
    """Latency against quality, BM25 as a line across."""
    axes = _axes(figure, "latency of a query, p50, ms", f"mean {HEADINGS[found['metric']]}")
    for m, (model, mean) in enumerate(zip(found["models"], found["overall"], strict=False)):
        x, y = model["efficiency"]["latency_p50_ms"], mean["mean"]
        below, above = y - mean["low"], mean["high"] - y
        axes.errorbar([x], [y], [[below], [above]], fmt="o", color=_colour(m), capsize=3)
    bm25 = found["overall"][-1]
    axes.axhline(bm25["mean"], linestyle="--", color=COLOURS[-1], label=bm25["model"])
    axes.margins(0.2)
    axes.set_xlim(0, ROOM * max(m["efficiency"]["latency_p50_ms"] for m in found["models"]))
    _legend(figure, axes, found)


def draw_quality_bytes(figure: Figure, found: Json) -> None:
    """Every form of every model's vectors, and the front."""
    axes = _axes(figure, "bytes per document", f"mean {HEADINGS[found['metric']]}")
    points = []
    for m, forms in enumerate(found["compression"]):
        for form in forms:
            points.append(form_point(form))
            look: Any = {"marker": PRECISIONS[form["precision"]], "edgecolor": _colour(m), "s": 34}
            face = _colour(m) if form["rescored"] else "none"
            axes.scatter(*points[-1], facecolor=face, zorder=3, **look)
    axes.step(*zip(*pareto(points), strict=True), where="post", color=COLOURS[-1], linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _legend(figure, axes, found, PRECISIONS)


def draw_wins(figure: Figure, found: Json) -> None:
    """Sorted differences per query, a row for each task."""
    for task, axes in _rows(figure, found["tasks"], 1.8):
        for d, delta in enumerate(task["deltas"]):
            values = delta["differences"]
            shares = [(place + 0.5) / len(values) for place in range(len(values))]
            label = f"{_text(delta['model'])}: {delta['wins']:,} won, {delta['losses']:,} lost"
            axes.plot(shares, values, color=_colour(d + 1), label=label, drawstyle="steps-mid")
        axes.axhline(0, linewidth=0.8, color=COLOURS[-1])
        axes.set_title(_text(task["name"]))
        axes.legend(frameon=False, fontsize="small")
    figure.supxlabel("share of queries", fontsize="medium")


def draw_indexes(figure: Figure, found: Json) -> None:
    """Recall against speed, a row for each task that has a study."""
    tasks = [task for task in found["tasks"] if "indexes" in task]
    for task, axes in _rows(figure, tasks, 2.6):
        for m, indexes in enumerate(task["indexes"]):
            for index in indexes:
                at = (index["queries_per_second"], index["recall"])
                axes.scatter(*at, color=_colour(m), marker=KINDS[index["kind"]], s=34)
        axes.set(title=_text(task["name"]), ylabel="recall@10", xscale="log")
        axes.margins(0.1)
        axes.set_xlabel("queries per second")
    if tasks:
        shown = {INDEX_NAMES[kind]: marker for kind, marker in KINDS.items()}
        _legend(figure, figure.axes[0], found, shown)


def _legend(figure: Figure, axes: Axes, found: Json, markers: Mapping[str, str] = NONE) -> None:
    """Below the plot, where long names hide nothing: models by colour, kinds by marker."""
    handles, _ = axes.get_legend_handles_labels()
    look: Any = {"linestyle": "none", "markersize": 6}
    models = enumerate(_names(found))
    handles += [Line2D([], [], marker="o", color=_colour(m), label=n, **look) for m, n in models]
    handles += [
        Line2D([], [], marker=marker, color=COLOURS[-1], label=kind, **look)
        for kind, marker in markers.items()
    ]
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = 1 if longest > LONGEST_NAME // 2 + 5 else 3
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small"
    )


def _rows(figure: Figure, tasks: Sequence[Json], height: float) -> Iterator[tuple[Json, Axes]]:
    """A row of the figure for each task, its height growing with them."""
    figure.set_size_inches(WIDTH, 0.7 + (height + 0.7) * len(tasks))
    axes = figure.subplots(len(tasks), 1, squeeze=False)
    yield from zip(tasks, axes[:, 0], strict=True)


def _axes(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return axes


def _box(spread: Json) -> Json:
    low, first, middle, third, high = spread["quantiles"].values()
    names = ("whislo", "q1", "med", "q3", "whishi", "mean")
    return dict(zip(names, (low, first, middle, third, high, spread["mean"]), strict=True))


def _drawn(draw: Callable[[Figure, Json], None], found: Json, theme: str) -> tuple[str, bytes]:
    """A figure as SVG and, on white, as PNG; without a date or random ids."""
    ink, soft = THEMES[theme].values()
    settings: Any = {
        **dict.fromkeys(
            (
                "text.color",
                "axes.labelcolor",
                "xtick.color",
                "ytick.color",
                "boxplot.whiskerprops.color",
            ),
            ink,
        ),
        **dict.fromkeys(("boxplot.capprops.color", "boxplot.boxprops.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), soft),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "boxplot.medianprops.color": ink,
        "axes.facecolor": "none",
        "svg.hashsalt": "tercet",
        "font.size": 10,
    }
    with rc_context(settings):
        figure = Figure(figsize=(WIDTH, 4), layout="constrained")
        draw(figure, found)
        svg, png = io.BytesIO(), io.BytesIO()
        no_date: Any = {"Date": None}
        figure.savefig(svg, format="svg", metadata=no_date, facecolor="none")
        if theme == "light":
            figure.savefig(png, format="png", dpi=DOTS, facecolor="white")
    return svg.getvalue().decode(), png.getvalue()


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _names(found: Json) -> list[str]:
    return [_text(model["name"]) for model in found["models"]]


def _text(name: str) -> str:
    """A name as matplotlib shows it as it is: not too long, its dollars no formula."""
    cut = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return cut.replace("$", r"\$")
