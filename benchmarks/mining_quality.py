"""Does mining pay, and filtering? `python -m benchmarks.mining_quality --shared DIR --work DIR`.

On code_nl2bash and scifact: all-MiniLM-L6-v2, trained with no mined negatives, with the hardest
unlabelled documents, with those a relative margin leaves, and with those of them that a
cross-encoder lets pass. The same rows, batches, steps and seeds for all; scored on the test split.

The cross-encoder is trained here, on the training queries: their positives against a random and a
mined document each. A tenth of the queries is kept from it, to say how good it is.

Each run leaves one JSON in the work folder and is repeated only with other settings, weights or
code, so the program can be stopped at any time. It goes seed by seed, and
benchmarks/results/mining_quality.json tells after each seed of a collection what was seen so far,
with the machine and the code it was seen with; a collection that was not asked for stays.
What `--small` makes has a folder of its own.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import getsource
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

from benchmarks.collections import contents, cut_by, write_collection
from benchmarks.kept import kept_json, made_of, mined, scored_by, weights
from benchmarks.machine import RESULTS, refuse_published, write_section
from tercet import stages
from tercet.configs import Config, ModelConfig, load
from tercet.data import RetrievalTask, TrainingSet, read_task, read_training, with_mined
from tercet.evaluation import MAIN_METRIC, Delta
from tercet.evaluation.significance import bootstrap_interval, compare
from tercet.files import fingerprint
from tercet.models import EMBEDDED, default_device, load_encoder, resolve
from tercet.models.cross import cross_scores, load_scorer
from tercet.progress import say
from tercet.report import markdown_table
from tercet.report.table import p_value

NONE, RESCORED = "none", "filtered, rescored"
CONDITIONS: dict[str, tuple[str, ...]] = {  # what each adds to the recipe
    NONE: (),
    "unfiltered": ("mining.relative_margin=null",),
    "filtered": ("mining.relative_margin=0.95",),
    RESCORED: ("mining.relative_margin=0.95", "mining.rescore.depth=20"),
}
FOR_JUDGE = (
    "mining.relative_margin=null",
    "mining.skip=10",
    "mining.depth=50",
    "mining.sampling=random",
    "mining.negatives=1",
)
TRAINING = (
    "batch.size=32",
    "batch.micro_tokens=2048",
    "train.learning_rate=5.0e-5",
    "train.dropout=0.0",
    "loss.directions=[query_to_document,document_to_query]",
    "train.save_every=1000000",
)
PAIR_LENGTH = 128  # tokens of query and document that the cross-encoder reads
HELD_OUT = 10  # every so many queries the cross-encoder is tested on one instead of trained
Found = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A collection with a training split, and how much of it is used."""

    name: str
    rows: int  # training queries
    max_length: int  # tokens of a text
    test_queries: int = 10**9
    documents: int = 10**9


TASKS = {
    task.name: task
    for task in (
        Task("code_nl2bash", rows=2048, max_length=96),
        Task("scifact", rows=10**9, max_length=96),
    )
}


def main() -> None:
    """Run what is missing, merge what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[12, 13, 14])
    parser.add_argument("--small", type=int, help="so many queries and documents: to try it out")
    arguments = parser.parse_args()
    if arguments.small:
        refuse_published(parser, arguments.out)
    os.environ["TERCET_CACHE"] = str(arguments.work / "cache")
    work, tasks = arguments.work, TASKS
    if small := arguments.small:
        work, tasks = work / f"small-{small}", {n: _small(t, small) for n, t in TASKS.items()}
    for count in range(1, len(arguments.seeds) + 1):
        for name in arguments.only:
            seeds = arguments.seeds[:count]
            found = measure(tasks[name], arguments.shared / name, work / name, seeds)
            write_section(arguments.out / "mining_quality.json", name, found, TASKS)


def measure(task: Task, source: Path, folder: Path, seeds: Sequence[int]) -> Found:
    """Everything about one collection; each step is skipped that left a JSON under the same."""
    made_by = cut_by(contents(source), asdict(task), getsource(write_data))
    data = folder / f"data-{made_by}" / task.name
    if not data.exists():
        write_data(task, source, data)
    test = read_task(data, "test")
    tested = scored_by(task=test.fingerprint)
    begun = {"weights": weights(resolve(EMBEDDED)), "max_length": task.max_length}
    base = kept_json(
        folder / "base.json", lambda: score(EMBEDDED, "base", test, task, folder), tested | begun
    )
    judge = train_judge(task, data, folder)
    sets = {c: mine(task, data, folder, c) for c in CONDITIONS if c != NONE}
    runs: dict[str, list[Found]] = {}
    for seed in seeds:
        for condition in CONDITIONS:
            config = training(task, data, folder, sets.get(condition), seed)
            run = kept_json(
                folder / f"{_named(condition)}-{seed}.json",
                lambda c=condition, f=config: train(f, c, test, task, folder),
                tested | made_of(config),
            )
            runs.setdefault(condition, []).append(run)
    return {"seeds": list(seeds)} | section(task, base, judge, sets, runs)


def section(
    task: Task,
    base: Found,
    judge: Found,
    sets: Mapping[str, Found],
    runs: Mapping[str, Sequence[Found]],
) -> Found:
    """What the result says of a collection: means over the seeds, and what mining changes."""
    return {
        "setting": asdict(task),
        "training": TRAINING,
        "steps": runs[NONE][0]["steps"],
        "base": _means([base]),
        "conditions": {c: _means(found) for c, found in runs.items()},
        "deltas": {c: asdict(_delta(runs[NONE], runs[c])) for c in sets},
        "seconds": {c: [run["seconds"] for run in found] for c, found in runs.items()},
        "mined": {c: _told(found) for c, found in sets.items()},
        "judge": judge,
    }


def write_data(task: Task, source: Path, folder: Path) -> None:
    """A BEIR folder with `task.rows` training queries and, unless it is small, the whole corpus."""
    train, test = read_task(source, "train"), read_task(source, "test")
    drawn = np.random.default_rng(0).permutation(len(train.queries))[: task.rows]
    asked = {train.queries.ids[q]: train.queries.texts[q] for q in np.sort(drawn)}
    tested = dict(zip(test.queries.ids, test.queries.texts, strict=True))
    tested = dict(list(tested.items())[: task.test_queries])
    qrels = {
        "train": {q: train.qrels[q] for q in asked},
        "test": {q: test.qrels[q] for q in tested},
    }
    wanted = {d for judged in qrels.values() for grades in judged.values() for d in grades}
    corpus = dict(zip(train.documents.ids, train.documents.texts, strict=True))
    others = [d for d in corpus if d not in wanted][: max(0, task.documents - len(wanted))]
    wanted.update(others)
    kept = {d: text for d, text in corpus.items() if d in wanted}
    write_collection(folder, kept, tested | asked, qrels)


def training(
    task: Task, data: Path, folder: Path, negatives: Mapping[str, Any] | None, seed: int
) -> Config:
    """How one model learns: the recipe, and the mined set if there is one."""
    more = [f"data.mined={negatives['file']}"] if negatives else []
    return _config(task, data, folder / "run", *TRAINING, *more, f"train.seed={seed}")


def train(config: Config, condition: str, test: RetrievalTask, task: Task, folder: Path) -> Found:
    """Train one model and score it; its folder is removed, its scores stay."""
    run = Path(config.output)
    shutil.rmtree(run, ignore_errors=True)
    say(f"{task.name}: {condition}, seed {config.train.seed}")
    start = time.perf_counter()
    model = stages.finetune(config)
    seconds = time.perf_counter() - start
    steps = json.loads((run / "summary.json").read_text(encoding="utf-8"))["steps"]
    found = score(str(model), condition, test, task, folder)
    shutil.rmtree(run)
    return found | {"steps": steps, "seconds": seconds}


def mine(task: Task, data: Path, folder: Path, condition: str) -> Found:
    """The mined set of a condition."""
    more = list(CONDITIONS[condition])
    if condition == RESCORED:
        more.append(f"mining.rescore.model={folder / 'judge'}")
    place = folder / "mined" / _named(condition)
    return mined(place, _config(task, data, place, *more))


def score(model: str, name: str, test: RetrievalTask, task: Task, folder: Path) -> Found:
    """nDCG@10 of every test query."""
    config = ModelConfig(path=model, max_length=task.max_length)
    encoder = load_encoder(config).to(default_device())
    result = stages.evaluate_model(encoder, name, test, folder / "evaluated")
    return {"scores": result.scores[MAIN_METRIC]}


def train_judge(task: Task, data: Path, folder: Path) -> Found:
    """A cross-encoder from the embedded model, and how often it puts a positive first."""
    place, out = folder / "mined" / "for-judge", folder / "judge"
    negatives = mined(place, _config(task, data, place, *FOR_JUDGE))["file"]
    config = _config(task, data, place, *FOR_JUDGE, f"data.mined={negatives}")
    how = (*map(getsource, (fitted, judge_pairs, fit_judge)), str(PAIR_LENGTH), str(HELD_OUT))
    made_by = made_of(config) | {"fitted": fingerprint(how)}
    rows = with_mined(read_training(config.data.train), negatives)
    return kept_json(folder / "judge.json", lambda: fitted(rows, out), made_by)


def fitted(rows: TrainingSet, out: Path) -> Found:
    """Fit the cross-encoder on most queries, and ask it about the rest."""
    start = time.perf_counter()
    pairs, contests = judge_pairs(rows)
    fit_judge(pairs, out)
    scorer = load_scorer(str(out))
    first, second = (cross_scores(scorer, [(c[0], c[i]) for c in contests]) for i in (1, 2))
    return {
        "pairs": len(pairs),
        "contests": len(contests),
        "positive_first": float((first > second).mean()),
        "seconds": time.perf_counter() - start,
    }


def judge_pairs(
    rows: TrainingSet,
) -> tuple[list[tuple[str, str, float]], list[tuple[str, str, str]]]:
    """Query, document and label to learn; query, positive and mined document to be asked about.

    A row gives its positives, a random document and its mined ones.
    """
    random = np.random.default_rng(0)
    pairs: list[tuple[str, str, float]] = []
    contests: list[tuple[str, str, str]] = []
    texts = rows.documents.texts
    for row, query in enumerate(rows.row_query.tolist()):
        question, positives = rows.queries.texts[query], rows.positives[row].tolist()
        others = [int(random.integers(len(texts))), *rows.negatives[row].tolist()]
        if row % HELD_OUT == 0:
            contests += [(question, texts[positives[0]], texts[d]) for d in others[1:]]
            continue
        pairs += [(question, texts[d], 1.0) for d in positives]
        pairs += [(question, texts[d], 0.0) for d in others if d not in positives]
    return pairs, contests


def fit_judge(pairs: Sequence[tuple[str, str, float]], out: Path) -> None:
    """One pass over the pairs with binary cross-entropy."""
    torch.manual_seed(0)
    model = CrossEncoder(
        resolve(EMBEDDED), num_labels=1, max_length=PAIR_LENGTH, device=str(default_device())
    )
    columns = zip(*pairs, strict=True)
    rows = dict(zip(("query", "document", "label"), map(list, columns), strict=True))
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(out.with_name("judge-training")),
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=5e-5,
        warmup_steps=0.1,
        report_to="none",
        save_strategy="no",
        logging_steps=20,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=0,
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        loss=BinaryCrossEntropyLoss(model),
    )
    trainer.train()
    model.save_pretrained(str(out))


def tables(found: Found) -> dict[str, str]:
    """What docs/mining.md shows."""
    rows, notes = [], []
    for name, task in found.items():
        rows.append(_row(name, "untrained", task["base"]))
        for condition, means in task["conditions"].items():
            row = _row(name, condition, means)
            if delta := task["deltas"].get(condition):
                d = Delta(**delta)
                interval = f"[{d.low:+.3f}, {d.high:+.3f}]"
                row["Against none"] = f"{d.mean:+.3f} {interval}, {p_value(d.p)}"
            rows.append(row)
        notes.append(_note(name, task))
    text = "\n".join(notes)
    return {"mining_quality": f"{markdown_table(rows)}\n\n{text}"}


def _note(name: str, task: Found) -> str:
    judge, mined = task["judge"], task["mined"]
    kept = "; ".join(f"{c} {found['kept'] / found['queries']:.2f}" for c, found in mined.items())
    rate = mined[RESCORED]["false_negatives"]
    interval = f"{rate['rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"
    return (
        f"- {name}: {mined[RESCORED]['queries']:,} training queries, {task['steps']} steps. "
        f"Negatives per query: {kept}. The cross-encoder, trained on {judge['pairs']:,} pairs, "
        f"puts the positive before a mined document for {judge['positive_first']:.1%} of "
        f"{judge['contests']:,} queries kept from it; of the top unlabelled documents it puts "
        f"{interval} above the positive."
    )


def _row(task: str, negatives: str, means: Found) -> dict[str, str]:
    seeds = means["seeds"]
    return {
        "Task": task,
        "Negatives": negatives,
        "nDCG@10": f"{means['mean']:.3f} [{means['low']:.3f}, {means['high']:.3f}]",
        "Seeds": f"{min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else "",
    }


def _means(runs: Sequence[Found]) -> Found:
    """Over queries, each query's score being its mean over the seeds."""
    values = np.array(list(_by_query(runs).values()))
    low, high = bootstrap_interval(values)
    seeds = [float(np.mean(list(run["scores"].values()))) for run in runs]
    return {"mean": float(values.mean()), "low": low, "high": high, "seeds": seeds}


def _delta(without: Sequence[Found], having: Sequence[Found]) -> Delta:
    return compare(_by_query(without), _by_query(having))


def _by_query(runs: Sequence[Found]) -> dict[str, float]:
    return {q: float(np.mean([run["scores"][q] for run in runs])) for q in runs[0]["scores"]}


def _told(found: Mapping[str, Any]) -> Found:
    """Of a mined set, what the result shows."""
    shown = {"false_negatives": found["false_negatives"], "seconds": found["seconds"]}
    return found["counts"] | shown


def _named(condition: str) -> str:
    """As files are called."""
    return condition.replace(", ", "-")


def _config(task: Task, data: Path, out: Path, *more: str) -> Config:
    common = [f"output={out}", f"data.train={data}", f"model.max_length={task.max_length}"]
    return load("finetune", [*common, "overwrite=true", *more])


def _small(task: Task, size: int) -> Task:
    return replace(task, rows=size, test_queries=size, documents=4 * size, max_length=32)


if __name__ == "__main__":
    main()
