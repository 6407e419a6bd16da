"""The models of a comparison, and what each costs to run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.configs.schema import Prompts
from tercet.data import RetrievalTask
from tercet.evaluation.efficiency import DOCUMENTS, QUERIES, measure_apart
from tercet.models import (
    default_device,
    load_encoder,
    max_length,
    model_fingerprint,
    prompts_of,
    resolve,
)
from tercet.models.encode import vector_width
from tercet.models.quantise import Ranges, read_ranges
from tercet.progress import say
from tercet.stages.names import refuse_wide

SEED = 0  # of the texts that speed is measured on
UNSTEADY = 1.3  # fastest to slowest pass over the same documents: more is the work of others
STRAGGLING = 4.0  # 95th percentile to median of queries, whose lengths differ too
Json = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A model that takes part."""

    name: str
    config: ModelConfig
    encoder: SentenceTransformer
    ranges: Mapping[int, Ranges]  # stored with the model; none if it was never calibrated


def load_contestant(
    path: str, name: str, prompts: Prompts, trust_remote_code: bool = False
) -> Contestant:
    """Load a model with these prompts, and the ranges stored with it."""
    config = ModelConfig(path=path, prompts=prompts, trust_remote_code=trust_remote_code)
    encoder = load_encoder(config, "model").to(default_device())
    ranges = read_ranges(Path(resolve(path, "model")), model_fingerprint(encoder))
    return Contestant(name, config, encoder, ranges)


def check_widths(compared: Sequence[Contestant], asked: Sequence[int]) -> None:
    """Say so if the models' vectors are not of one length.

    Raises UserError if one of the lengths asked for besides the usual ones shortens none of them.
    """
    widths = {model.name: vector_width(model.encoder) for model in compared}
    refuse_wide(asked, max(widths.values()))
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        say(f"dimensions differ ({listed}): compare quality at equal bytes per vector too")


def costs_of(compared: Sequence[Contestant], tasks: Sequence[RetrievalTask]) -> list[Json]:
    """`what_it_costs` of each model in turn; says which speeds other programs have disturbed."""
    found = []
    for place, model in enumerate(compared, start=1):
        say(
            f"{model.name}: load time, speed and memory, in a process of its own "
            f"({place} of {len(compared)}; nothing is said until it is done)"
        )
        start = time.perf_counter()
        found.append(cost := what_it_costs(model, tasks))
        say(f"{model.name}: measured in {time.perf_counter() - start:.0f} s")
        if reason := disturbed(cost["efficiency"]):
            say(f"{model.name}: {reason}: its speeds are noise; compare again on a quiet machine")
    return found


def disturbed(speed: Json) -> str | None:
    """Why the speeds of an Efficiency are not to be trusted; None if nothing speaks against them.

    >>> disturbed({"fastest_pass": 30.0, "slowest_pass": 10.0})
    'the same texts took 3.0 times longer in one pass than in another'
    """
    if (passes := speed["fastest_pass"] / speed["slowest_pass"]) > UNSTEADY:
        return f"the same texts took {passes:.1f} times longer in one pass than in another"
    if (waits := speed["latency_p95_ms"] / speed["latency_p50_ms"]) > STRAGGLING:
        return f"a query's 95th percentile is {waits:.1f} times its median"
    return None


def what_it_costs(model: Contestant, tasks: Sequence[RetrievalTask]) -> Json:
    """What a model is, and how fast it is on texts drawn from `tasks`."""
    documents = [text for task in tasks for text in task.documents.texts]
    queries = [text for task in tasks for text in task.queries.texts]
    sample = _some(documents, DOCUMENTS), _some(queries, QUERIES)
    return {
        "name": model.name,
        "path": model.config.path,
        "fingerprint": model_fingerprint(model.encoder),
        "max_length": max_length(model.encoder),
        "prompts": prompts_of(model.encoder),
        "calibrated": sorted(model.ranges),
        "efficiency": asdict(measure_apart(model.config, *sample)),
    }


def _some(texts: Sequence[str], count: int) -> list[str]:
    chosen = np.random.default_rng(SEED).choice(
        len(texts), min(count, len(texts)), replace=False, shuffle=False
    )
    return [texts[int(i)] for i in chosen]
