"""Does pruning make an exported graph faster? Zeroed weights, fewer heads, fewer layers.

python -m benchmarks.pruning [--rounds N] [--quick] [--out FOLDER]
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import print as show
from sentence_transformers import SentenceTransformer
from torch import nn

from benchmarks.encoding import MAX_LENGTH
from benchmarks.inference import asked
from benchmarks.machine import (
    RESULTS,
    alternate,
    medians,
    ratio,
    refuse_trial,
    write_result,
)
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask
from tercet.data.code import docstring_task
from tercet.evaluation import MAIN_METRIC, comparison, score_task, search
from tercet.export.runtime import OnnxEncoder
from tercet.export.variants import INT8, write_onnx
from tercet.files import write_json
from tercet.models import EMBEDDED, load_encoder
from tercet.models.layers import keep_layers
from tercet.report.table import console_table, markdown_table

WHOLE = "whole"
FEWER = {
    "5 of 6 layers": (0, 1, 2, 3, 5),
    "4 of 6 layers": (0, 1, 3, 5),
    "3 of 6 layers": (0, 2, 4),
}
LEAST = 1.05  # times faster: less is noise
QUERIES = 100  # asked one at a time


def zero_least(model: SentenceTransformer, share: float) -> None:
    """Set the weights of least magnitude of every linear layer to zero (Han et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            least = weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
            weight[weight.abs() <= least] = 0


def halve_heads(model: SentenceTransformer) -> None:
    """Take out the half of the heads whose output layer has the smallest weights."""
    body: Any = model[0].auto_model
    for layer in body.encoder.layer:
        attention, output = layer.attention.self, layer.attention.output.dense
        heads, size = attention.num_attention_heads, attention.attention_head_size
        norms = output.weight.data.reshape(-1, heads, size).norm(dim=(0, 2))
        kept = norms.topk(heads // 2).indices.sort().values
        places = (kept[:, None] * size + torch.arange(size)).flatten()
        for part in (attention.query, attention.key, attention.value):
            part.weight.data, part.bias.data = part.weight.data[places], part.bias.data[places]
        output.weight.data = output.weight.data[:, places]
        attention.num_attention_heads, attention.all_head_size = len(kept), len(places)


CUTS: dict[str, Callable[[SentenceTransformer], None]] = {
    WHOLE: lambda model: None,
    "50 % of the weights zero": lambda model: zero_least(model, 0.5),
    "90 % of the weights zero": lambda model: zero_least(model, 0.9),
    "half of the heads": halve_heads,
} | {name: partial(keep_layers, wanted=kept) for name, kept in FEWER.items()}


def graphs(folder: Path) -> dict[str, OnnxEncoder]:
    """Every cut as an fp32 and an int8 graph."""
    found = {}
    for number, (name, cut) in enumerate(CUTS.items()):
        model = load_encoder(ModelConfig(path=EMBEDDED, max_length=MAX_LENGTH))
        cut(model)
        place = folder / str(number)
        write_onnx(model, place, int8=True)
        write_json(place / "config_sentence_transformers.json", {"prompts": model.prompts})
        found[f"{name}, fp32"] = OnnxEncoder(place)
        found[f"{name}, int8"] = OnnxEncoder(place, INT8)
    return found


def measure(task: RetrievalTask, rounds: int) -> dict[str, Any]:
    """Speed and nDCG@10 of every graph on docstrings and code."""
    with tempfile.TemporaryDirectory() as folder:
        encoders = graphs(Path(folder))
        queries, documents = task.queries.texts, task.documents.texts
        single = alternate(
            {
                name: (lambda run=run: asked(lambda q: run([q], "query"), queries[:QUERIES], []))
                for name, run in encoders.items()
            },
            rounds,
        )
        bulk = alternate(
            {n: (lambda run=run: run(documents, "document")) for n, run in encoders.items()}, rounds
        )
        results = {
            name: score_task(
                task,
                search(task, run(queries, "query"), run(documents, "document"), 100),
                model=name,
            )
            for name, run in encoders.items()
        }
    first = f"{WHOLE}, fp32"
    return {
        "queries": len(queries),
        "documents": len(documents),
        "query_ms": {n: s / min(QUERIES, len(queries)) * 1e3 for n, s in medians(single).items()},
        "documents_per_second": {n: len(documents) / s for n, s in medians(bulk).items()},
        "query_times_faster": {n: ratio(single, _whole(n), n) for n in encoders},
        "document_times_faster": {n: ratio(bulk, _whole(n), n) for n in encoders},
        "ndcg@10": {n: result.means[MAIN_METRIC].mean for n, result in results.items()},
        "difference": {n: vars(comparison(results[first], r)) for n, r in results.items()},
    }


def _whole(name: str) -> str:
    """The uncut graph of the same precision."""
    return f"{WHOLE}, {name.rsplit(', ', 1)[1]}"


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The table of the result."""
    return [
        {
            "Graph": name,
            "Query, ms": f"{ms:.1f}",
            "Faster than whole": f"{found['query_times_faster'][name]:.2f}",
            "Documents / s": f"{found['documents_per_second'][name]:,.0f}",
            "Faster": f"{found['document_times_faster'][name]:.2f}",
            "nDCG@10": f"{found['ndcg@10'][name]:.3f}",
            "Difference": _interval(found["difference"][name]),
        }
        for name, ms in found["query_ms"].items()
    ]


def _interval(delta: dict[str, float]) -> str:
    return f"{delta['mean']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}]"


def notes(found: dict[str, Any]) -> str:
    """What the table does not say."""
    return (
        f'{found["queries"]:,} docstrings of Python\'s standard library and their code. "Faster" '
        "compares with the uncut graph of the same precision. Differences of nDCG@10 are from the "
        f"uncut fp32 graph, paired, with 95 % intervals; {found['machine']['threads']} threads."
    )


def verdict(found: dict[str, Any]) -> str:
    """Whether a cut loses less nDCG@10 than fewer layers would at its speed, as docs/decisions.md
    tells it.

    Between two numbers of layers, nDCG@10 lost is taken to grow as the time that is saved.
    """
    cuts = [name for name in found["ndcg@10"] if not name.startswith((WHOLE, *FEWER))]
    table, paying = [], []
    for name in cuts:
        row, lost = {"Graph": name, "nDCG@10 lost": f"{_lost(found, name):.3f}"}, []
        for what in ("query", "document"):
            faster, layers = _at_equal_speed(found, name, what)
            worth = faster >= LEAST  # else there is nothing to compare
            lost += [layers] * worth
            row[f"{what.capitalize()}: faster"] = f"{faster:.2f}"
            row[f"{what}: layers lose"] = f"{layers:.3f}" if worth else "-"
        pays = any(_lost(found, name) < layers for layers in lost)
        table.append(row | {"Pays": "yes" if pays else "no"})
        paying += [name] * pays
    said = f"These lose less than fewer layers would at their speed: {'; '.join(paying)}."
    none = f"None is {LEAST} times as fast and loses less than fewer layers would at its speed."
    return f"{markdown_table(table)}\n\n{said if paying else none}"


def _at_equal_speed(found: dict[str, Any], name: str, what: str) -> tuple[float, float]:
    """How many times faster a cut is, and the nDCG@10 that fewer layers would lose for as much."""
    times, form = found[f"{what}_times_faster"], name.rsplit(", ", 1)[1]
    layers = sorted((f"{cut}, {form}" for cut in (WHOLE, *FEWER)), key=lambda cut: times[cut])
    saved = [1 - 1 / times[cut] for cut in layers]
    lost = [_lost(found, cut) for cut in layers]
    return times[name], float(np.interp(1 - 1 / times[name], saved, lost))


def _lost(found: dict[str, Any], name: str) -> float:
    """nDCG@10 against the uncut graph of the same precision."""
    return found["ndcg@10"][_whole(name)] - found["ndcg@10"][name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth, one round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    refuse_trial(parser, options, "rounds", "quick")
    task = docstring_task("stdlib", 50 if options.quick else 500)
    found = measure(task, 1 if options.quick else options.rounds)
    path = write_result("pruning", found, options.out)
    show(console_table(rows(found)))
    print(path)


if __name__ == "__main__":
    main()
