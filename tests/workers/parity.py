"""Gradients of `batch_gradient` in 1, 2 and 4 processes against a plain dense reference.

`python -m tests.workers.parity OUT` writes OUT/<world>.json: for each case, how the gradient
compares. Everything is float64, so that only a real difference shows.
"""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel

from tercet.data.batch import Batch, Batches
from tercet.data.order import Order
from tercet.data.rows import Indices, Ragged, Texts, TrainingSet
from tercet.losses import Guide, Relations, info_nce
from tercet.train.plan import plan
from tercet.train.shards import whole
from tercet.train.step import Share, Terms, batch_gradient
from tests.workers.launch import run_ranks, sharding_accelerator

MARGIN, GUIDE_MARGIN, HARDNESS = 0.05, 0.1, 3.0
MICRO_TOKENS = 16  # several micro-batches on each of four processes
KEEP = {"kept": 10**9, "some": 20, "recomputed": 0}  # 20: the first micro-batch of each, not all


class Encoder(nn.Module):
    """BERT with mean pooling and unit vectors: (B, T) ids and mask -> (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        settings = BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
        )
        self.bert = BertModel(settings, add_pooling_layer=False).double()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize((hidden * mask[:, :, None]).sum(dim=1), dim=1)


@dataclass(frozen=True)
class Case:
    """One setting of everything that must not change the gradient, or must change both alike."""

    name: str
    step: int  # batch 0 has 16 rows, batch 1 the 13 that are left
    keep: str
    tile: int
    masks: bool


def token_ids(text: str) -> list[int]:
    """The texts of this test are their own tokens: "5 7 5"."""
    return [int(word) for word in text.split()]


def pad(texts: list[str]) -> tuple[Tensor, Tensor]:
    tokens = [torch.tensor(token_ids(text)) for text in texts]
    ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(t)) for t in tokens], batch_first=True)
    return ids, mask.double()


def training_set(rows: int = 29) -> TrainingSet:
    """Rows with several positives and negatives, texts that repeat under one id and under many."""
    random = np.random.default_rng(3)

    def texts(count: int, distinct: int) -> Texts:
        pool = [" ".join(map(str, random.integers(1, 40, n))) for n in random.integers(1, 12, 99)]
        drawn = [pool[i] for i in random.integers(0, distinct, count)]
        return Texts([f"id{i}" for i in range(count)], drawn)

    def lists(least: int, most: int) -> Ragged:
        sizes = random.integers(least, most + 1, rows)
        return Ragged.of([random.integers(0, 40, size).tolist() for size in sizes])

    row_query = random.integers(0, 25, rows)
    offsets = np.array([0, rows])
    return TrainingSet(texts(25, 20), texts(40, 30), row_query, lists(1, 3), lists(0, 2), offsets)


def texts_of(batch: Batch, data: TrainingSet) -> list[str]:
    queries = [data.queries.texts[i] for i in batch.queries]
    return queries + [data.documents.texts[i] for i in batch.documents]


def reference(q: Tensor, d: Tensor, batch: Batch, t: Tensor, guide: Tensor, masks: bool) -> Tensor:
    """InfoNCE from the full score matrix, one positive pair at a time."""
    cosine = q @ d.T
    seen = cosine.detach()
    known = torch.zeros_like(seen, dtype=torch.bool)
    for i, j in [*batch.positives, *batch.ignored]:
        known[i, j] = True
    losses = []
    for i, j in batch.positives:
        x = cosine[i, j] / t
        right, down = ~known[i], ~known[:, j]
        if not masks:
            negatives = cosine[i][right] / t
            losses.append(torch.cat([x[None], negatives]).logsumexp(0) - x)
            continue
        top, limit = seen[i, j] + MARGIN, guide[i, j] - GUIDE_MARGIN
        right = right & (seen[i] <= top) & (guide[i] <= limit)
        down = down & (seen[:, j] <= top) & (guide[:, j] <= limit)
        across = (cosine[i] / t + HARDNESS * seen[i])[right]
        upright = (cosine[:, j] / t)[down]
        z = [torch.cat([x[None], part]).logsumexp(0) for part in (across, upright)]
        losses.append((z[0] + z[1]) / 2 - x)
    return torch.stack(losses).mean()


def compare(
    accelerator: Accelerator,
    plain: Encoder,
    model: nn.Module,
    whole: Callable[[Tensor], Tensor],
    batches: Batches,
    case: Case,
    reduced: list[int] | None = None,
) -> dict[str, Any]:
    """Both gradients of one batch, side by side. `whole` gathers a sharded gradient.

    `reduced` is where DDP notes how many numbers it sends each time.
    """
    batch, data = batches(case.step), batches.data
    texts = texts_of(batch, data)
    count = len(batch.queries)
    random = torch.Generator().manual_seed(4)
    opinion = F.normalize(torch.randn(len(texts), 6, generator=random).double(), dim=1)
    opinions = Guide(opinion[:count], opinion[count:], GUIDE_MARGIN)

    log_t = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    plain.zero_grad()
    vectors = plain(*pad(texts))
    scores = opinions.queries @ opinions.documents.T
    want = reference(vectors[:count], vectors[count:], batch, log_t.exp(), scores, case.masks)
    want.backward()

    learned = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
    both = ("query_to_document", "document_to_query")
    masks = {"directions": both, "hardness": HARDNESS, "margin": MARGIN, "guide": opinions}
    pairs = [torch.from_numpy(p) for p in (batch.positives, batch.negatives, batch.ignored)]
    loss = partial(
        info_nce,
        relations=Relations(*pairs),
        temperature=learned.exp(),
        tile=case.tile,
        **(masks if case.masks else {}),
    )

    def share_of(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        seen = loss(queries, documents, share=share.of(len(batch.positives)))
        return Terms(seen.loss, {"by_margin": seen.by_margin, "by_guide": seen.by_guide})

    def forward(micro: Indices) -> Tensor:
        own = [texts[i] for i in (micro if len(micro) else [0])]
        return model(*pad(own))[: len(micro)]

    model.zero_grad()
    noted = [] if reduced is None else reduced
    noted.clear()
    lengths = np.array([len(token_ids(text)) for text in texts])
    cut = plan(lengths, accelerator.num_processes, MICRO_TOKENS)
    outcome = batch_gradient(
        accelerator,
        model,
        forward,
        cut,
        count,
        share_of,
        keep_tokens=KEEP[case.keep],
        seed=(0, case.step),
        extra=(learned,),
    )
    got = torch.cat([whole(p.grad).flatten() for p in model.parameters()])  # type: ignore[arg-type]
    ref = torch.cat([p.grad.flatten() for p in plain.parameters()])  # type: ignore[union-attr]
    assert learned.grad is not None and log_t.grad is not None
    return {
        "name": case.name,
        "scale": float(got @ ref / (ref @ ref)),
        "cosine": float(F.cosine_similarity(got, ref, dim=0)),
        "loss": [outcome.loss, want.item()],
        "temperature": [float(learned.grad), float(log_t.grad)],
        "recomputed": outcome.recomputed,
        "micro_batches": len(cut.ranks[0]),
        "reduced": sum(noted),
        "parameters": sum(p.numel() for p in plain.parameters()),
        **outcome.sums,
        "texts": len(texts),
        "shown": len(batch.asked) + len(batch.shown),
        "rows": len(batch.rows),
    }


def cases() -> list[Case]:
    found = []
    for step, keep, tile, masks in product((0, 1), KEEP, (1024, 5), (True, False)):
        name = f"batch {step}, {keep}, tile {tile}, masks {'on' if masks else 'off'}"
        found.append(Case(name, step, keep, tile, masks))
    return found


def all_rows(known: bool) -> Batches:
    data = training_set()
    return Batches(data, Order((len(data),), 16, 5), negatives_per_row=2, known=known)


def one_row() -> Batches:
    """A query, a positive and a negative: fewer texts than four processes."""
    return Batches(training_set(), Order((1,), 16, 5), positives_per_row=1, known=False)


def work(rank: int, world: int, out: Path) -> None:
    """Every case in one process group; rank 0 writes what was found."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    torch.manual_seed(0)
    plain = Encoder()
    model = accelerator.prepare(copy.deepcopy(plain))
    by_masks = {known: all_rows(known) for known in (True, False)}
    reduced: list[int] = []
    if isinstance(model, DistributedDataParallel):

        def noting(state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
            reduced.append(bucket.buffer().numel())
            group = dist.group.WORLD
            assert group is not None
            return allreduce_hook(group, bucket)

        model.register_comm_hook(None, noting)

    def own(gradient: Tensor) -> Tensor:
        return gradient

    found = [
        compare(accelerator, plain, model, own, by_masks[case.masks], case, reduced)
        for case in cases()
    ]
    lonely = Case("a single row", 0, "some", 1024, False)
    found.append(compare(accelerator, plain, model, own, one_row(), lonely, reduced))
    _write(rank, out / f"{world}.json", found)


def work_sharded(rank: int, out: Path) -> None:
    """The same under FSDP: parameters and gradients live in shards."""
    accelerator = sharding_accelerator(cpu=True)
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    plugin.transformer_cls_names_to_wrap = ["BertLayer"]
    torch.manual_seed(0)
    plain = Encoder()
    model = copy.deepcopy(plain)
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    assert isinstance(model.bert.encoder.layer[0], FSDPModule) and accelerator.is_fsdp2

    by_masks = {known: all_rows(known) for known in (True, False)}
    found = [
        compare(accelerator, plain, model, whole, by_masks[case.masks], case)
        for case in cases()
        if case.tile == 5
    ]
    _write(rank, out / "sharded.json", found)


def _write(rank: int, path: Path, found: list[dict[str, Any]]) -> None:
    if rank == 0:
        path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for size in (1, 2, 4) if len(sys.argv) < 3 else ():
        run_ranks(size, partial(work, world=size, out=folder))
    run_ranks(2, partial(work_sharded, out=folder))
