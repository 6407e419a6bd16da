"""Gradients of `batch_gradient` in 1, 2 and 4 processes against a plain dense reference.

`python -m tests.workers.parity OUT` writes OUT/<world>.json: for each case, how the gradient
compares; and OUT/<world>-dropout.json: gradients with dropout on. Everything is float64, so that
only a real difference shows.
"""

import copy
import json
import sys
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
from tercet.losses import Guide, Relations, info_nce, matryoshka
from tercet.models import set_dropout
from tercet.train.plan import Plan, plan
from tercet.train.shards import whole
from tercet.train.step import Loss, Outcome, Share, Terms, batch_gradient
from tests.workers.launch import run_ranks, sharding_accelerator
from tests.workers.reference import ALL, nested_reference

MARGIN, GUIDE_MARGIN, HARDNESS = 0.05, 0.1, 3.0
MICRO_TOKENS = 16  # several micro-batches on each of four processes
WIDTHS = {16: 1.0, 8: 0.7, 4: 0.3}  # of Matryoshka, with their weights
LOSSES: dict[str, dict[str, Any]] = {  # keywords of `info_nce`; all but the first have the masks
    "masks off": {},
    "masks on": {"directions": ALL[:2]},
    "joint": {"directions": ALL, "joint": True},
    "own negatives": {"in_batch_negatives": False},
    "matryoshka": {"directions": ALL[:2]},
}
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
    loss: str  # of LOSSES

    @property
    def masks(self) -> bool:
        return self.loss != "masks off"


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


def opinions_of(batch: Batch) -> Guide:
    """A guide's vectors of the texts of a batch."""
    count, random = len(batch.queries), torch.Generator().manual_seed(4)
    drawn = torch.randn(count + len(batch.documents), 6, generator=random).double()
    opinion = F.normalize(drawn, dim=1)
    return Guide(opinion[:count], opinion[count:], GUIDE_MARGIN)


def loss_of(batch: Batch, case: Case, temperature: Tensor, settings: dict[str, Any]) -> Loss:
    """The loss as training calls it. `settings` are keywords of `info_nce`."""
    pairs = [torch.from_numpy(p) for p in (batch.positives, batch.negatives, batch.ignored)]
    plain = partial(
        info_nce,
        relations=Relations(*pairs),
        temperature=temperature,
        tile=case.tile,
        **settings,
    )

    def share_of(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        def one_width(q: Tensor, d: Tensor) -> Terms:
            seen = plain(q, d, share=share.of(len(batch.positives)))
            return Terms(seen.loss, {"by_margin": seen.by_margin, "by_guide": seen.by_guide})

        if case.loss != "matryoshka":
            return one_width(queries, documents)
        return matryoshka(one_width, list(WIDTHS), list(WIDTHS.values()))(queries, documents)

    return share_of


def gradient_of(
    accelerator: Accelerator,
    model: nn.Module,
    texts: list[str],
    queries: int,
    loss: Loss,
    *,
    keep: str,
    seed: int,
    extra: tuple[nn.Parameter, ...] = (),
) -> tuple[Tensor, Plan, Outcome]:
    """What a step leaves in the parameters, all in a row, and how it came about."""

    def forward(micro: Indices) -> Tensor:
        own = [texts[i] for i in (micro if len(micro) else [0])]
        return model(*pad(own))[: len(micro)]

    model.zero_grad()
    lengths = np.array([len(token_ids(text)) for text in texts])
    cut = plan(lengths, accelerator.num_processes, MICRO_TOKENS)
    outcome = batch_gradient(
        accelerator,
        model,
        forward,
        cut,
        queries,
        loss,
        keep_tokens=KEEP[keep],
        seed=(0, seed),
        extra=extra,
    )
    found = [whole(p.grad).flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found), cut, outcome


def compare(
    accelerator: Accelerator,
    plain: Encoder,
    model: nn.Module,
    batches: Batches,
    case: Case,
    reduced: list[int],
) -> dict[str, Any]:
    """Both gradients of one batch, side by side.

    `reduced` is where DDP notes how many numbers it sends each time.
    """
    batch = batches(case.step)
    texts, count = texts_of(batch, batches.data), len(batch.queries)
    settings = dict(LOSSES[case.loss])
    if case.masks:
        settings |= {"hardness": HARDNESS, "margin": MARGIN, "guide": opinions_of(batch)}

    log_t = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    plain.zero_grad()
    vectors = plain(*pad(texts))
    sides = vectors[:count], vectors[count:]
    widths = WIDTHS if case.loss == "matryoshka" else {vectors.shape[1]: 1.0}
    want = nested_reference(*sides, batch, log_t.exp(), widths, **settings)
    want.backward()
    ref = torch.cat([p.grad.flatten() for p in plain.parameters()])  # type: ignore[union-attr]

    learned = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
    loss = loss_of(batch, case, learned.exp(), settings)
    reduced.clear()
    got, cut, outcome = gradient_of(
        accelerator, model, texts, count, loss, keep=case.keep, seed=case.step, extra=(learned,)
    )
    assert learned.grad is not None and log_t.grad is not None
    return {
        "name": case.name,
        "scale": float(got @ ref / (ref @ ref)),
        "cosine": float(F.cosine_similarity(got, ref, dim=0)),
        "loss": [outcome.loss, want.item()],
        "temperature": [float(learned.grad), float(log_t.grad)],
        "recomputed": outcome.recomputed,
        "micro_batches": len(cut.ranks[0]),
        "reduced": sum(reduced),
        "parameters": sum(p.numel() for p in plain.parameters()),
        **outcome.sums,
        "texts": len(texts),
        "shown": len(batch.asked) + len(batch.shown),
        "rows": len(batch.rows),
    }


def with_dropout(accelerator: Accelerator, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Gradients of one batch: without dropout, with it drawn anew, and with one draw thrice."""
    batches = all_rows(known=False)
    batch, case = batches(0), Case("dropout", 0, "kept", 1024, "masks off")
    texts, count = texts_of(batch, batches.data), len(batch.queries)
    loss = loss_of(batch, case, torch.tensor(0.1), {})

    def drawn(keep: str, seed: int) -> dict[str, Any]:
        found, _, outcome = gradient_of(
            accelerator, model, texts, count, loss, keep=keep, seed=seed
        )
        return {"gradient": found.tolist(), "recomputed": outcome.recomputed}

    without = drawn("kept", 1)
    set_dropout(model, 0.3)
    return {"off": without, "anew": drawn("kept", 2)} | {keep: drawn(keep, 1) for keep in KEEP}


def cases() -> list[Case]:
    usual = product((0, 1), KEEP, (1024, 5), ("masks on", "masks off"))
    others = product((1,), ("some",), (5,), ("joint", "own negatives", "matryoshka"))
    return [
        Case(f"batch {step}, {keep}, tile {tile}, {loss}", step, keep, tile, loss)
        for step, keep, tile, loss in (*usual, *others)
    ]


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

    found = [
        compare(accelerator, plain, model, by_masks[case.masks], case, reduced) for case in cases()
    ]
    lonely = Case("a single row", 0, "some", 1024, "masks off")
    found.append(compare(accelerator, plain, model, one_row(), lonely, reduced))
    _write(rank, out, str(world), found, with_dropout(accelerator, model))


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
        compare(accelerator, plain, model, by_masks[case.masks], case, [])
        for case in cases()
        if case.tile == 5
    ]
    _write(rank, out, "sharded", found, with_dropout(accelerator, model))


def _write(
    rank: int, out: Path, launch: str, found: list[dict[str, Any]], drawn: dict[str, dict[str, Any]]
) -> None:
    if rank == 0:
        (out / f"{launch}.json").write_text(json.dumps(found), encoding="utf-8")
        (out / f"{launch}-dropout.json").write_text(json.dumps(drawn), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for size in (1, 2, 4) if len(sys.argv) < 3 else ():
        run_ranks(size, partial(work, world=size, out=folder))
    run_ranks(2, partial(work_sharded, out=folder))
