"""What the plots of a comparison show, in words, for those who do not see them."""

from collections.abc import Iterator, Sequence

from tercet.report.cells import Json


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gain) that no other one matches at no more cost with as much gain.

    >>> pareto([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.7)])
    [(1, 0.5), (3, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def score_words(found: Json) -> Iterator[str]:
    """Medians of similar and dissimilar pairs."""
    for task in found["tasks"]:
        for model, scores in zip(found["models"], task["contrast"], strict=True):
            near, far = (scores[side]["quantiles"]["0.5"] for side in ("similar", "dissimilar"))
            where = f"{task['name']}, {model['name']}"
            yield f"{where}: median {near:.2f} similar, {far:.2f} dissimilar."


def speed_words(found: Json) -> Iterator[str]:
    """Size and speed of each model."""
    for model in found["models"]:
        at = model["efficiency"]
        yield (
            f"{model['name']}: {at['megabytes']:.0f} MB, {at['documents_per_second']:.0f} "
            f"documents per second, {at['dimensions']} dimensions."
        )


def cost_words(found: Json) -> Iterator[str]:
    """Quality and latency of each model."""
    for model, mean in zip(found["models"], found["overall"], strict=False):
        latency = model["efficiency"]["latency_p50_ms"]
        yield f"{model['name']}: {mean['mean']:.3f} at {latency:.1f} ms."
    yield f"{found['overall'][-1]['model']}: {found['overall'][-1]['mean']:.3f}."


def front_words(found: Json) -> Iterator[str]:
    """The forms of vectors that none beats at their size."""
    named: dict[tuple[float, float], str] = {}
    for model, forms in zip(found["models"], found["compression"], strict=True):
        for form in forms:
            how = f"{form['dims']} x {form['precision']}{', rescored' * form['rescored']}"
            named.setdefault(form_point(form), f"{model['name']}, {how}")
    for size, mean in pareto(list(named)):
        yield f"{named[size, mean]}: {size} bytes, {mean:.3f}."


def form_point(form: Json) -> tuple[float, float]:
    """What a form of vectors takes, all that a search of it reads, and how good it is."""
    return form["bytes"] + form["rescoring_bytes"], form["mean"]


def win_words(found: Json) -> Iterator[str]:
    """Queries won and lost."""
    for task in found["tasks"]:
        for delta in task["deltas"]:
            yield (
                f"{task['name']}, {delta['model']}: {delta['wins']} queries won, "
                f"{delta['losses']} lost, {delta['ties']} equal."
            )


def index_words(found: Json) -> Iterator[str]:
    """Recall of each index."""
    for task in found["tasks"]:
        for model, indexes in zip(found["models"], task.get("indexes", ()), strict=False):
            for index in indexes:
                where = f"{task['name']}, {model['name']}"
                yield f"{where}, {index['name']}: recall {index['recall']:.2f}."
