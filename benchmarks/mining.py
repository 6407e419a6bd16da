"""Finding hard negatives: exact search, a peer's miner, and approximate indexes.

python -m benchmarks.mining [--only search|peer|ann ...] [--rounds N] [--quick] [--out FOLDER]

Each part replaces its own section of mining.json and leaves the others. A section says on which
machine and with which code it was measured.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from rich import print as show

from benchmarks.machine import (
    RESULTS,
    alternate,
    gemm_peak,
    in_subprocess,
    medians,
    peak_memory,
    ratio,
    refuse_published,
    seconds,
    target,
    targets_note,
    write_section,
)
from benchmarks.miners import MINERS, NEGATIVES, OURS, PEER, Pairs, ours
from benchmarks.vectors import WIDTH, near, write_vectors
from tercet.mining import ann_top_k, top_k
from tercet.mining.ann import Index
from tercet.mining.candidates import Picked
from tercet.models.shards import Vectors, rows_of_a_shard
from tercet.report.table import Row, console_table

QUERIES, K = 10_000, 100
BY_ID = "ours, a store by id"  # how `tercet mine` reads vectors: row by row out of its shards
SIZES = {100_000: 5, 300_000: 3, 1_000_000: 2}  # documents: rounds
MOST_ROUNDS = max(SIZES.values())
MOST_MEMORY = 1.5e9 / 2**20  # MiB of a whole process that searches, beside the map
MOST_GROWTH = 1.1  # of the time per document from the smallest size to the largest: it is linear
PAIRS = 20_000  # queries, each with a document of its own, for the peer's miner
ANN_DOCUMENTS = 100_000
KINDS: tuple[Index, ...] = ("flat", "ivf_flat", "ivf_pq", "hnsw")
Section = dict[str, Any]


def search(work: Path, rounds: int | None, quick: bool) -> Section:
    """Ours beside FAISS's flat index at every size."""
    sizes = {20_000: 1} if quick else {n: rounds or some for n, some in SIZES.items()}
    write_vectors(work / "q.npy", 1_000 if quick else QUERIES, seed=1)
    found = [search_at(work, count, turns) for count, turns in sizes.items()]
    most = found[-1]
    each = [size["medians"][OURS] / size["documents"] for size in found]
    targets = [
        target("share of the matrix peak", most["share_of_peak"][OURS], least=0.7),
        target("the same of a store in the order of ids", most["share_of_peak"][BY_ID], least=0.7),
        target("faiss's time over ours", most["times_faster"], least=1.0),
        target("MiB beside the map", most["memory"]["beside_mib"], most=MOST_MEMORY),
        target("score gap where positions differ", max(s["largest_gap"] for s in found), most=1e-5),
        target("time per document, the most over the fewest", each[-1] / each[0], most=MOST_GROWTH),
    ]
    return {"width": WIDTH, "k": K, "sizes": found, "targets": targets}


def search_at(work: Path, count: int, rounds: int) -> Section:
    """Times, the share of the matrix peak, agreement, and our memory in a process of its own."""
    documents = write_vectors(work / "d.npy", count, seed=2)
    queries = np.load(work / "q.npy", mmap_mode="r")
    asked = np.ascontiguousarray(queries)
    index: Any = faiss.IndexFlatIP(WIDTH)
    index.add(np.ascontiguousarray(documents))
    faiss.omp_set_num_threads(torch.get_num_threads())
    ids = np.random.default_rng(5).permutation(count)
    by_id = Picked(store_of(documents), ids)
    answers: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    peaks: list[float] = []
    variants = {
        OURS: lambda: answers.update(ours=top_k(queries, documents, K)),
        BY_ID: lambda: answers.update(by_id=top_k(queries, by_id, K)),
        "faiss": lambda: answers.update(faiss=index.search(asked, K)),
        "products": lambda: peaks.append(gemm_peak()),
    }
    times = alternate(variants, rounds)
    del times["products"]
    middle, flops = medians(times), 2 * len(queries) * count * WIDTH
    (scores, positions), (other_scores, other) = answers[OURS], answers["faiss"]
    others = other, ids[answers["by_id"][1]]
    return {
        "queries": len(queries),
        "documents": count,
        "seconds": times,
        "medians": middle,
        "times_faster": ratio(times, "faiss", OURS),
        "gemm_peak": peaks,
        "share_of_peak": {n: flops / t / float(np.median(peaks)) for n, t in middle.items()},
        "score_difference": float(np.abs(scores - other_scores).max()),
        "same_positions": float((positions == other).mean()),
        "largest_gap": max(largest_gap(asked, documents, positions, there) for there in others),
        "memory": in_subprocess("benchmarks.mining", "--memory", "search", str(work)),
    }


def store_of(vectors: NDArray[np.float32]) -> Vectors:
    """The same rows cut as a store of them is."""
    each = rows_of_a_shard(len(vectors))
    shards = [vectors[start : start + each] for start in range(0, len(vectors), each)]
    return Vectors(shards, (len(vectors), vectors.shape[1]), "given")


def largest_gap(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
) -> float:
    """How far the float64 scores of the two documents are apart, at most, where a place differs.

    Next to nothing if they are ties but for rounding; anything else is an error of one side.
    """
    rows, columns = np.nonzero(ours != theirs)
    if not len(rows):
        return 0.0
    asked = queries[rows].astype(np.float64)
    scores = [
        np.einsum("nh,nh->n", asked, documents[found[rows, columns]]) for found in (ours, theirs)
    ]
    return float(np.abs(scores[0] - scores[1]).max())


def peer(work: Path, rounds: int | None, quick: bool) -> Section:
    """Ours, from vectors to a written mined set, beside `mine_hard_negatives`."""
    documents = write_vectors(work / "d.npy", 2_000 if quick else PAIRS, seed=3)
    np.save(work / "q.npy", near(documents, seed=4))
    found: dict[str, Pairs] = {}  # of the last round
    runs = {n: lambda n=n, run=run: found.update({n: run(work)}) for n, run in MINERS.items()}
    times = alternate(runs, rounds or 3)
    ours(work, work / "cache")
    again = [seconds(lambda: ours(work, work / "cache", 0.9)) for _ in range(rounds or 3)]
    memory = {n: in_subprocess("benchmarks.mining", "--memory", n, str(work)) for n in MINERS}
    share = memory[OURS]["extra_mib"] / memory[PEER]["extra_mib"]
    return {
        "targets": [
            target(f"time of {PEER} over ours", ratio(times, PEER, OURS), least=5),
            target("share of its memory", share, most=0.25),
        ],
        "again": again,
        "pairs": len(documents),
        "width": WIDTH,
        "negatives": NEGATIVES,
        "seconds": times,
        "medians": medians(times),
        "times_faster": {name: ratio(times, name, OURS) for name in times if name != OURS},
        "mined": {name: len(pairs) for name, pairs in found.items()},
        "same": {n: len(found[OURS] & p) / len(found[OURS] | p) for n, p in found.items()},
        "memory": memory,
    }


def ann(work: Path, rounds: int | None, quick: bool) -> Section:
    """Seconds of each index, building included, and what it finds; exact search beside them."""
    documents = write_vectors(work / "d.npy", 20_000 if quick else ANN_DOCUMENTS, seed=2)
    queries = write_vectors(work / "q.npy", 1_000 if quick else QUERIES, seed=1)
    exact = [seconds(lambda: top_k(queries, documents, K)) for _ in range(rounds or 1)]
    found: dict[str, Section] = {}
    for kind in KINDS:
        answers: list[Any] = []
        run = partial(ann_top_k, queries, documents, K, index=kind)
        times = [seconds(lambda r=run, a=answers: a.append(r())) for _ in range(rounds or 1)]
        found[kind] = {"seconds": times, "recall": answers[0][2]}
    return {"queries": len(queries), "documents": len(documents), "exact": exact, "kinds": found}


PARTS = {"search": search, "peer": peer, "ann": ann}


def report_memory(what: str, work: Path) -> dict[str, float]:
    """Peak memory of one search, or of one miner, in this process, and the size of the files.

    `beside_mib` is all that is resident at the peak, libraries included, less those files.
    """
    found = {"map_mib": sum((work / f"{side}.npy").stat().st_size for side in "qd") / 2**20}
    with peak_memory(found):
        if what == "search":
            queries, documents = (np.load(work / f"{s}.npy", mmap_mode="r") for s in "qd")
            top_k(queries, documents, K)
        else:
            MINERS[what](work)
    return found | {"beside_mib": found["total_mib"] - found["map_mib"]}


def search_rows(found: Section) -> list[Row]:
    """The table of exact search."""
    return [
        {
            "Exact search": f"**{name}**" if name == OURS else name,
            "Documents": f"{size['documents']:,}",
            "Seconds": f"{value:.1f}",
            "Time / ours": f"{ratio(size['seconds'], name, OURS):.2f}",
            "Share of peak": f"{size['share_of_peak'][name]:.0%}",
            "Memory beside the map": f"{size['memory']['beside_mib']:,.0f} MiB" * (name == OURS),
        }
        for size in found["sizes"]
        for name, value in size["medians"].items()
    ]


def peer_rows(found: Section) -> list[Row]:
    """The table of miners."""
    return [
        {
            "Mining": f"**{name}**" if name == OURS else name,
            "Seconds": f"{value:.1f}",
            "Time / ours": f"{found['times_faster'].get(name, 1.0):.1f}",
            "Extra memory": f"{found['memory'][name]['extra_mib']:,.0f} MiB",
            "Negatives": f"{found['mined'][name]:,}",
            "Same as ours": f"{found['same'][name]:.2%}",
        }
        for name, value in found["medians"].items()
    ]


def ann_rows(found: Section) -> list[Row]:
    """The table of approximate indexes."""
    kinds = {"exact search": {"seconds": found["exact"], "recall": 1.0}} | found["kinds"]
    return [
        {
            "Index": name,
            "Seconds": f"{float(np.median(kind['seconds'])):.1f}",
            f"Recall@{K}": f"{kind['recall']:.3f}",
        }
        for name, kind in kinds.items()
    ]


ROWS = {"search": search_rows, "peer": peer_rows, "ann": ann_rows}


NOTES = {
    "search": lambda found: (
        f"k = {found['k']}, width {found['width']}. Scores differ from FAISS's by at most "
        f"{max(size['score_difference'] for size in found['sizes']):.0e}; "
        f"{min(size['same_positions'] for size in found['sizes']):.3%} of the positions are the "
        "same; where they are not, the two scores are at most "
        f"{max(size['largest_gap'] for size in found['sizes']):.0e} apart. Ours in a process of "
        f"its own peaks at {max(size['memory']['total_mib'] for size in found['sizes']):,.0f} MiB, "
        f"the map included. {targets_note(found['targets'])}"
    ),
    "peer": lambda found: (
        f"{found['pairs']:,} queries and documents, width {found['width']}. Other rules on the "
        f"same lists take ours {float(np.median(found['again'])):.1f} s. "
        + targets_note(found["targets"])
    ),
    "ann": lambda found: f"{found['queries']:,} queries, {found['documents']:,} documents.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="small sizes, for trying it out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        what, work = options.memory
        return print(json.dumps(report_memory(what, Path(work))))
    if options.quick or (options.rounds or MOST_ROUNDS) < MOST_ROUNDS:
        refuse_published(parser, options.out)
    path = options.out / "mining.json"
    for part in options.only:
        with tempfile.TemporaryDirectory() as work:
            found = PARTS[part](Path(work), options.rounds, options.quick)
        show(console_table(ROWS[part](found)))
        write_section(path, part, found, PARTS)
        print(path)


if __name__ == "__main__":
    main()
