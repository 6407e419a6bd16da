"""Guide-masked InfoNCE on given embeddings: ours beside the peer's GISTEmbedLoss.

python -m benchmarks.guide_mask [--rounds N] [--quick] [--out FOLDER]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import print as show
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss
from torch import Tensor, nn

from benchmarks.machine import (
    RESULTS,
    alternate,
    in_subprocess,
    medians,
    peak_memory,
    ratio,
    refuse_trial,
    write_result,
)
from benchmarks.steps import student
from tercet.losses import Guide, Relations, info_nce
from tercet.report.table import console_table

WIDTH = 768
TEMPERATURE = 0.01  # the peer's default
DIRECTIONS = ("query_to_document", "query_to_query", "document_to_document")
Vectors = tuple[Tensor, Tensor]  # unit vectors of queries and of documents, (B, H) each


class Given(nn.Module):
    """Stands where the peer expects a model and hands on embeddings, so the loss alone is run."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.max_seq_length = name, 8
        self.tokenizer = student(max_length=8).tokenizer  # the peer compares the two vocabularies

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.name]}


def vectors(size: int, seed: int) -> Vectors:
    """Pairs close enough that the guide finds some negatives better than the positive."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(size // 4 + 1, WIDTH, generator=generator)[torch.arange(size) // 4]
    noise = torch.randn(2, size, WIDTH, generator=generator)
    return F.normalize(topics + noise[0], dim=1), F.normalize(topics + noise[1], dim=1)


def ours(texts: Vectors, guide: Vectors) -> tuple[float, Tensor]:
    """Loss, and the gradient of all texts (2B, H)."""
    given = [t.clone().requires_grad_() for t in texts]
    row = torch.arange(len(given[0]))
    none = torch.zeros(0, 2, dtype=torch.int64)
    loss = info_nce(
        *(F.normalize(t, dim=1) for t in given),  # theirs normalises too
        relations=Relations(torch.stack([row, row], dim=1), none, none),
        temperature=TEMPERATURE,
        directions=DIRECTIONS,
        joint=True,
        guide=Guide(*guide),
    ).loss
    loss.backward()
    return loss.item(), _gradients(given)


def peer() -> nn.Module:
    """The peer's loss around two models that hand on what they are given."""
    student, guide = Given("student"), Given("guide")
    return GISTEmbedLoss(student, guide, temperature=TEMPERATURE)  # pyright: ignore[reportArgumentType]


def theirs(loss: nn.Module, texts: Vectors, guide: Vectors) -> tuple[float, Tensor]:
    """The same from the peer."""
    given = [t.clone().requires_grad_() for t in texts]
    features = [{"student": s, "guide": g} for s, g in zip(given, guide, strict=True)]
    value = loss(features, torch.empty(0))
    value.backward()
    return value.item(), _gradients(given)


def _gradients(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.grad for t in tensors if t.grad is not None])


def measure(size: int, rounds: int) -> dict[str, Any]:
    """Times, agreement and peak memory of both sides."""
    texts, guide = vectors(size, 0), vectors(size, 1)
    other_loss = peer()
    variants = {
        "ours": lambda: ours(texts, guide),
        "theirs": lambda: theirs(other_loss, texts, guide),
    }
    times = alternate(variants, rounds)
    mine, other = ours(texts, guide), theirs(other_loss, texts, guide)
    return {
        "batch": size,
        "width": WIDTH,
        "seconds": times,
        "medians": medians(times),
        "times_faster": ratio(times, "theirs", "ours"),
        "loss": {"ours": mine[0], "theirs": other[0]},
        "gradient_difference": float((mine[1] - other[1]).norm() / other[1].norm()),
        "memory": {side: _memory(side, size) for side in variants},
    }


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The table of the result."""
    return [
        {
            "Guide-masked loss": name,
            "Seconds": f"{found['medians'][side]:.2f}",
            "Extra memory": f"{found['memory'][side]['extra_mib']:,.1f} MiB",
            "Loss": f"{found['loss'][side]:.6f}",
        }
        for side, name in (("ours", "**ours**"), ("theirs", "GISTEmbedLoss"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, one round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        side, size = options.memory
        return print(json.dumps(report_memory(side, int(size))))
    refuse_trial(parser, options, "rounds", "quick")
    found = measure(128 if options.quick else 512, 1 if options.quick else options.rounds)
    path = write_result("guide_mask", found, options.out)
    show(console_table(rows(found)))
    print(
        f"{found['times_faster']:.0f} times faster; "
        f"gradients differ by {found['gradient_difference']:.1e}; {path}"
    )


def _memory(side: str, size: int) -> dict[str, float]:
    return in_subprocess("benchmarks.guide_mask", "--memory", side, str(size))


def report_memory(side: str, size: int) -> dict[str, float]:
    """Peak memory of one side's loss in this process."""
    texts, guide = vectors(size, 0), vectors(size, 1)
    loss = peer()
    ours((texts[0][:16], texts[1][:16]), (guide[0][:16], guide[1][:16]))  # libraries' own buffers
    found: dict[str, float] = {}
    with peak_memory(found):
        _ = ours(texts, guide) if side == "ours" else theirs(loss, texts, guide)
    return found


if __name__ == "__main__":
    main()
