"""InfoNCE on given embeddings, forward and backward: ours beside the peer's cached loss stage.

python -m benchmarks.loss_stage [--rounds N] [--quick] [--out FOLDER]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import print as show
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor

from benchmarks.machine import (
    RESULTS,
    alternate,
    gemm_peak,
    in_subprocess,
    medians,
    peak_memory,
    ratio,
    refuse_trial,
    write_result,
)
from benchmarks.steps import TEMPERATURE, student
from tercet.losses import TILE, Relations, info_nce
from tercet.report.table import console_table

WIDTH = 384
PIECE = 512  # rows normalised at a time
TILES = (256, 512, 1_024, 2_048)
Found = tuple[float, Tensor, Tensor]  # loss, gradients of queries and documents


def embeddings(queries: int) -> tuple[Tensor, Tensor]:
    """Unit vectors (Q, H) and (2Q, H): document i answers query i, document Q + i is its rival."""
    generator = torch.Generator().manual_seed(0)
    asked = torch.randn(queries, WIDTH, generator=generator)
    noise = torch.randn(2, queries, WIDTH, generator=generator)
    documents = torch.cat([asked + 2 * noise[0], asked + 3 * noise[1]])
    return F.normalize(asked, dim=1), F.normalize(documents, dim=1)


def ours(queries: Tensor, documents: Tensor, tile: int = TILE) -> Found:
    """`info_nce` with one hard negative per query, the normalisation of both sides included."""
    asked, shown = queries.detach().requires_grad_(), documents.detach().requires_grad_()
    row = torch.arange(len(queries))
    relations = Relations(
        torch.stack([row, row], dim=1),
        torch.stack([row, row + len(row)], dim=1),
        torch.zeros(0, 2, dtype=torch.int64),
    )
    loss = info_nce(_units(asked), _units(shown), relations, TEMPERATURE, tile=tile).loss
    loss.backward()
    assert asked.grad is not None and shown.grad is not None
    return loss.item(), asked.grad, shown.grad


def _units(embeddings: Tensor) -> Tensor:
    """Theirs normalises too; in pieces, as the embeddings of micro-batches are."""
    return torch.cat([F.normalize(part, dim=1) for part in embeddings.split(PIECE)])


def theirs(peer: CachedMultipleNegativesRankingLoss, queries: Tensor, documents: Tensor) -> Found:
    """The peer's loss stage as its cached step calls it: embeddings in, their gradients out."""
    count, size = len(queries), peer.mini_batch_size
    columns = (queries, documents[:count], documents[count:])
    pieces = [[p.detach().requires_grad_() for p in column.split(size)] for column in columns]
    loss = peer.calculate_loss(pieces, with_backward=True)
    asked, *shown = (torch.cat([_gradient(p) for p in column]) for column in pieces)
    return loss.item(), asked, torch.cat(shown)


def matmuls(queries: Tensor, documents: Tensor) -> Callable[[], None]:
    """The four products (scores, scores again, two gradients) and nothing else, 8 Q D H FLOPs.

    Into the same tensors at every call: no time goes into fresh memory.
    """
    scores = torch.empty(len(queries), len(documents))
    asked, shown = torch.empty_like(queries), torch.empty_like(documents)

    def multiply() -> None:
        for _ in range(2):
            torch.mm(queries, documents.T, out=scores)
        torch.mm(scores, documents, out=asked)
        torch.mm(scores.T, queries, out=shown)

    return multiply


def peer(mini_batch_size: int) -> CachedMultipleNegativesRankingLoss:
    """The peer's class needs a model to be made; this stage does not run it."""
    return CachedMultipleNegativesRankingLoss(
        student(max_length=8), scale=1 / TEMPERATURE, mini_batch_size=mini_batch_size
    )


def measure(queries: int, rounds: int) -> dict[str, Any]:
    """Times of everything, agreement of the results, peak memory of each side."""
    asked, shown = embeddings(queries)
    small, large = peer(32), peer(512)
    variants = {
        "theirs, mini-batch 32": lambda: theirs(small, asked, shown),
        "theirs, mini-batch 512": lambda: theirs(large, asked, shown),
        "matmuls": matmuls(asked, shown),
    } | {f"ours, tile {tile}": (lambda tile=tile: ours(asked, shown, tile)) for tile in TILES}
    times = alternate(variants, rounds)
    mine, other = ours(asked, shown), theirs(large, asked, shown)
    ours_now = f"ours, tile {TILE}"
    memory = {side: _memory(side, queries) for side in ("ours", "theirs")}
    return {
        "queries": queries,
        "documents": len(shown),
        "width": WIDTH,
        "tile": TILE,
        "gemm_peak": gemm_peak(),
        "seconds": times,
        "medians": medians(times),
        "times_faster": ratio(times, "theirs, mini-batch 32", ours_now),
        "times_faster_than_512": ratio(times, "theirs, mini-batch 512", ours_now),
        "times_matmuls": ratio(times, ours_now, "matmuls"),
        "loss": {"ours": mine[0], "theirs": other[0]},
        "gradient_difference": max(
            float((a - b).norm() / b.norm()) for a, b in zip(mine[1:], other[1:], strict=True)
        ),
        "memory": memory,
    }


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The table of the result."""
    own = f"ours, tile {found['tile']}"
    return [
        {
            "Loss stage": f"**{name}**" if name == own else name,
            "Seconds": f"{value:.2f}",
            "Time / ours": f"{ratio(found['seconds'], name, own):.2f}",
            "Extra memory": f"{found['memory'][name.split(',')[0]]['extra_mib']:.0f} MiB"
            if name in (own, "theirs, mini-batch 32")
            else "",
        }
        for name, value in found["medians"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a quarter of the queries, one round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "QUERIES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        side, queries = options.memory
        return print(json.dumps(report_memory(side, int(queries))))
    refuse_trial(parser, options, "rounds", "quick")
    found = measure(2_048 if options.quick else 8_192, 1 if options.quick else options.rounds)
    path = write_result("loss_stage", found, options.out)
    show(console_table(rows(found)))
    print(
        f"{found['times_faster']:.1f} times faster than theirs, {found['times_matmuls']:.2f} times "
        f"the bare products; gradients differ by {found['gradient_difference']:.1e}; {path}"
    )


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _memory(side: str, queries: int) -> dict[str, float]:
    return in_subprocess("benchmarks.loss_stage", "--memory", side, str(queries))


def report_memory(side: str, queries: int) -> dict[str, float]:
    """Peak memory of one side's loss in this process."""
    asked, shown = embeddings(queries)
    other = peer(32)
    ours(asked[:64], shown[:128])  # libraries set up their own buffers on the first call
    found: dict[str, float] = {}
    with peak_memory(found):
        _ = ours(asked, shown) if side == "ours" else theirs(other, asked, shown)
    return found


if __name__ == "__main__":
    main()
