"""One training step on a global batch: plan, embed, gather, loss, backward.

The gradient is that of the plain loss on the whole batch in one process, whatever the number of
processes, the micro-batches, and how many of their graphs are kept (tests/test_step.py).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tercet.data.rows import Indices
from tercet.losses.tiled import at_least_float32
from tercet.train.plan import Plan
from tercet.train.room import OutOfMemory, Room


class Share(NamedTuple):
    """The part of a loss that one process answers for."""

    rank: int
    world: int

    def of(self, count: int) -> slice:
        """Its part of `count` things; the parts of all processes are all of them."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


class Terms(NamedTuple):
    """A loss's value over a share, and sums for the log: both add up over the processes."""

    loss: Tensor  # () with gradient
    sums: dict[str, Tensor]  # () each, without; the same names on every process


Loss = Callable[[Tensor, Tensor, Share], Terms]  # queries, documents, share
Forward = Callable[[Indices], Tensor]  # texts of a micro-batch -> vectors with gradient


class Outcome(NamedTuple):
    """What a step saw, equal on every process. The gradients are in the parameters."""

    loss: float
    sums: dict[str, float]
    recomputed: float  # share of padded tokens that went through the encoder twice
    vectors: Tensor  # (Q + D, H) embeddings of the batch, no gradient
    flags: int  # the sum of what the processes told


def batch_gradient(
    accelerator: Accelerator,
    model: nn.Module,
    forward: Forward,
    plan: Plan,
    queries: int,
    loss: Loss,
    *,
    keep_tokens: int,
    seed: tuple[int, ...],
    extra: tuple[nn.Parameter, ...] = (),
    flag: int = 0,
) -> Outcome:
    """Leave the gradient of `loss` over the whole batch in the parameters of `model`.

    `forward` runs micro-batches of `plan` through `model` (as prepared by `accelerator`);
    the first `queries` texts of the plan are queries. Graphs are kept for the first micro-batches
    up to `keep_tokens` padded tokens, the others are run again in the backward pass (GradCache,
    Gao et al. 2021, arXiv:2101.06983) under the same random numbers, which depend on `seed`, the
    rank and the place in the plan alone. `extra` are parameters of the loss itself. `flag`, up to
    2 ** 24 in all, tells the other processes something, at no cost.

    Raises OutOfMemory on every process if one has no room; gradients are then of no use.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = plan.ranks[rank]
    kept = plan.kept(keep_tokens)
    room = Room(accelerator)

    def embed(index: int) -> Tensor:
        state = np.random.SeedSequence([*seed, rank, index]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))
        vectors = forward(mine[index])
        return at_least_float32(vectors)

    def embed_all() -> list[Tensor]:
        found = []
        with accelerator.no_sync(model):
            for index in range(len(mine)):
                with torch.set_grad_enabled(index < kept):
                    found.append(embed(index))
        return found

    def shortest() -> Tensor:
        return at_least_float32(forward(mine[-1][-1:]))

    def zeros() -> list[Tensor]:
        with torch.no_grad(), accelerator.no_sync(model):
            like = shortest()
        return [like.new_zeros(len(micro), like.shape[1]) for micro in mine]

    graphs = room.attempt(embed_all, zeros)
    everything = _gather(accelerator, torch.cat([g.detach() for g in graphs]), plan)
    everything.requires_grad_()

    def loss_and_gradient() -> Terms | None:
        terms = loss(everything[:queries], everything[queries:], Share(rank, world))
        terms.loss.backward()
        return terms

    terms = room.attempt(loss_and_gradient, lambda: None)
    gradient, value, flags = _sum_over_ranks(accelerator, everything, terms, extra, room, flag)
    sums = _sum_report(accelerator, terms)

    # DDP and FSDP average the ranks' gradients, but ours are parts of one sum: the only place
    # where the world size enters.
    owned = torch.from_numpy(np.concatenate(mine)).to(gradient.device)
    pieces = (gradient * world)[owned].split([len(m) for m in mine])

    def graph(index: int) -> Tensor:
        with accelerator.no_sync(model):
            return graphs[index] if index < kept else embed(index)

    def back(index: int) -> None:
        vectors = graph(index)
        graphs[index] = pieces[index]  # frees the graph once it has been used
        with accelerator.no_sync(model):
            accelerator.backward(vectors, gradient=pieces[index].to(vectors.dtype))

    def stand_in() -> Tensor:
        graphs.clear()
        with accelerator.no_sync(model):
            return shortest()

    last = len(mine) - 1
    for index in range(last):
        room.attempt(partial(back, index), lambda: None)
    vectors = room.attempt(partial(graph, last), stand_in)
    piece = torch.zeros_like(vectors) if room.out else pieces[last].to(vectors.dtype)
    with accelerator.trigger_sync_in_backward(model):
        room.meet(lambda: accelerator.backward(vectors, gradient=piece))
    room.raise_if_out()
    return Outcome(
        loss=value,
        sums=sums,
        recomputed=plan.recomputed(keep_tokens),
        vectors=everything.detach(),
        flags=flags,
    )


def _gather(accelerator: Accelerator, local: Tensor, plan: Plan) -> Tensor:
    """(texts, H) vectors of the whole batch in the plan's numbering, from each rank's own."""
    owned = [np.concatenate(rank) for rank in plan.ranks]
    most = max(len(texts) for texts in owned)
    padded = local.new_zeros(most, local.shape[1])
    padded[: len(local)] = local
    gathered = accelerator.gather(padded).view(len(owned), most, -1)  # type: ignore[union-attr]
    everything = local.new_empty(len(plan.lengths), local.shape[1])
    for rank, texts in enumerate(owned):
        everything[torch.from_numpy(texts).to(local.device)] = gathered[rank, : len(texts)]
    return everything


def _sum_over_ranks(
    accelerator: Accelerator,
    vectors: Tensor,
    terms: Terms | None,
    extra: tuple[nn.Parameter, ...],
    room: Room,
    flag: int,
) -> tuple[Tensor, float, int]:
    """The gradient of all vectors, the loss and the sum of flags; the loss's own gradients are set.

    One collective for all of it. Raises OutOfMemory if a process has got no further than here.
    """
    if vectors.grad is None:  # the loss indexes them all, so this process had no room for it
        vectors.grad = torch.zeros_like(vectors)
    value = vectors.new_zeros(()) if terms is None else terms.loss.detach().to(vectors)
    own = [p.grad if p.grad is not None else torch.zeros_like(p) for p in extra]
    notes = torch.stack(
        [value, vectors.new_tensor(float(room.out)), vectors.new_tensor(float(flag))]
    )
    parts = [vectors.grad, *own, notes]
    flat = accelerator.reduce(torch.cat([p.reshape(-1).to(vectors) for p in parts]), "sum")
    gradient, *own, notes = flat.split([p.numel() for p in parts])  # type: ignore[union-attr]
    loss, out, flags = notes.tolist()  # waits for the device
    if out:
        raise OutOfMemory
    for parameter, value in zip(extra, own, strict=True):
        value = value.view_as(parameter).to(parameter)
        # fp16's scaler will unscale every gradient, and only `backward` has scaled the others.
        parameter.grad = accelerator.scaler.scale(value) if accelerator.scaler else value
    return gradient.view_as(vectors), loss, int(flags)


def _sum_report(accelerator: Accelerator, terms: Terms | None) -> dict[str, float]:
    """Apart from the gradients, since a process without room does not know how many sums."""
    if terms is None or not terms.sums:
        return {}
    # float32 counts whole pairs up to 2 ** 24, and to seven digits beyond
    sums = torch.stack([value.to(terms.loss.detach()) for value in terms.sums.values()])
    found = accelerator.reduce(sums, "sum")
    return dict(zip(terms.sums, found.tolist(), strict=True))  # type: ignore[union-attr]
