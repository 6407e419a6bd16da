"""What distillation reaches: `python -m benchmarks.distillation --shared DIR --work DIR`.

all-MiniLM-L6-v2 is the teacher throughout. Students learn from the texts of a collection's
training split, without labels, and are scored on its test split; whatever is chosen is chosen on a
dev part of the training queries. Parts (`--only PART ...`):

three_code, three_debian  three of six layers on code_nl2bash, debian_desc
two_code                  two of six layers on code_nl2bash
static_code               a static student on code_nl2bash
vocabulary_code           the teacher with 12,000 tokens on code_nl2bash
tuned_code, tuned_debian  the three-layer student, fine-tuned with InfoNCE, KL and mined negatives
merge                     the teacher and its fine-tuned self, and what lies between
retention                 every student of code_nl2bash beside the teacher

Each step leaves a JSON in the work folder and is not repeated, so the program can be stopped at
any time; a training that was stopped goes on. What is there is merged into distillation.json.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from benchmarks.collections import kept_json, write_collection, write_halves, write_with_dev
from benchmarks.machine import RESULTS, machine
from benchmarks.retention import TEACHER, plot, rates, retention, summary
from tercet import stages
from tercet.configs import ModelConfig, load
from tercet.data import read_task
from tercet.errors import UserError
from tercet.evaluation import MAIN_METRIC
from tercet.files import write_json
from tercet.models import (
    EMBEDDED,
    Size,
    default_device,
    load_encoder,
    max_length,
    pair_models,
)
from tercet.models.layers import layer_count
from tercet.progress import say

CODE, DEBIAN = "code_nl2bash", "debian_desc"
OTHERS = ("scifact", "cranfield", "stackfaq", DEBIAN)
CENTRES, SIFS = (True, False), (0.0, 1e-4, 1e-3, 1e-2)  # of static students, chosen on dev
RATES = (1e-3, 3e-3, 1e-2)  # the same
MERGE_DOCUMENTS, MERGE_QUERIES = 2_500, 300  # of a collection that guards the choice of a merge


@dataclass(frozen=True)
class Work:
    """Where things are, and how much is done."""

    shared: Path
    folder: Path
    small: int | None
    rounds: int
    dims: Sequence[int] = (128,)

    def data(self, name: str) -> Path:
        """A collection with a dev split of its own."""
        folder = self.folder / "data" / name
        if not folder.exists():
            write_with_dev(self.shared / name, folder, self.small)
        return folder


@dataclass(frozen=True)
class Align:
    """A student that learns the teacher's vectors: where, and what the recipe is told."""

    data: str
    settings: tuple[str, ...]


STUDENTS = {
    "three_code": Align(CODE, ("student.layers=[0,2,5]", "train.epochs=4")),
    # Texts are cut for training alone: most are shorter, and attention over the rest is dear.
    "three_debian": Align(
        DEBIAN, ("student.layers=[0,2,5]", "train.epochs=1.5", "model.max_length=128")
    ),
    "two_code": Align(CODE, ("student.layers=[0,5]", "train.epochs=6")),
}
STATIC = ("student.kind=static", "student.layers=all", "batch.size=256", "train.weight_decay=0")
STATIC_EPOCHS, TRIAL_EPOCHS = 20, 4
TUNED = {"tuned_code": ("three_code", 10**9), "tuned_debian": ("three_debian", 16_384)}
TUNE = (  # of the recipe distil_kl
    "train.epochs=1",
    "train.learning_rate=1.0e-4",
    "train.dropout=0.0",
    "batch.size=128",
    "distil.listwise_kl=0.5",
    "data.negatives_per_row=2",
    "loss.directions=[query_to_document,document_to_query]",
)
QUIET = ("batch.micro_tokens=2048", "overwrite=false")


def main() -> None:
    """Run what is missing, merge what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of every measurement of speed")
    parser.add_argument("--small", type=int, help="so many queries a split: to try it out")
    asked = parser.parse_args()
    os.environ["TERCET_CACHE"] = str(asked.work / "cache")
    work = Work(asked.shared, asked.work, asked.small, asked.rounds)
    for name in asked.only:
        part(work, name)
        write_json(asked.out / "distillation.json", {"machine": machine(), **done(work)})
    if (found := done(work)).get("retention"):
        plot(found["retention"], asked.out / "distillation.svg")


def part(work: Work, name: str) -> dict[str, Any]:
    """The section of one part; computed if it is not there."""
    say(f"part {name}")
    return kept_json(work.folder / "parts" / f"{name}.json", lambda: PARTS[name](work, name))


def done(work: Work) -> dict[str, Any]:
    """Every section that is there."""
    files = {name: work.folder / "parts" / f"{name}.json" for name in PARTS}
    return {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.exists()}


# Students


def aligned(work: Work, name: str) -> dict[str, Any]:
    """Cut, train on texts alone, score both ways."""
    task = STUDENTS[name]
    run = work.folder / "runs" / name
    config = load("distil_align", [*common(work, task.data, run), *task.settings])
    trained = timed(run, lambda: stages.distil(config))
    return judged(work, task.data, run, trained) | {"settings": task.settings}


def static(work: Work, name: str) -> dict[str, Any]:
    """Choose on dev how the table is made and how fast it learns, train it, score it."""
    dev = work.data(CODE)
    made = {}
    for centre in CENTRES[:1] if work.small else CENTRES:
        for sif in SIFS[-2:] if work.small else SIFS:
            how = (f"student.centre={str(centre).lower()}", f"student.sif={sif}")
            made[how] = kept_json(
                step(work, name, *how), lambda how=how: {"ndcg": untrained(work, how)}
            )
    table = max(made, key=lambda how: made[how]["ndcg"])
    tried = {}
    for rate in RATES[-1:] if work.small else RATES:
        how = (*table, f"train.learning_rate={rate}", f"train.epochs={TRIAL_EPOCHS}")
        tried[rate] = kept_json(
            step(work, name, *how), lambda how=how: {"ndcg": trial(work, dev, how)}
        )
    best = max(tried, key=lambda rate: tried[rate]["ndcg"])
    run = work.folder / "runs" / name
    settings = (*STATIC, *table, f"train.learning_rate={best}", f"train.epochs={STATIC_EPOCHS}")
    config = load("distil_align", [*common(work, CODE, run), *settings, f"evaluation.dev={dev}"])
    trained = timed(run, lambda: stages.distil(config))
    return judged(work, CODE, run, trained) | {
        "settings": settings,
        "tables_on_dev": {" ".join(how): found["ndcg"] for how, found in made.items()},
        "rates_on_dev": {str(rate): found["ndcg"] for rate, found in tried.items()},
    }


def untrained(work: Work, how: Sequence[str]) -> float:
    """nDCG@10 on dev of a static student before training."""
    out = work.folder / "trial"
    shutil.rmtree(out, ignore_errors=True)
    words = [f"output={out}", f"data.train={work.data(CODE)}", *how]
    made = stages.student(load("student_static", words))
    return mean_on_dev(made.model, work.data(CODE))


def trial(work: Work, dev: Path, how: Sequence[str]) -> float:
    """nDCG@10 on dev after a few epochs."""
    out = work.folder / "trial"
    shutil.rmtree(out, ignore_errors=True)
    model = stages.distil(load("distil_align", [*common(work, CODE, out), *STATIC, *how]))
    return mean_on_dev(load_encoder(ModelConfig(path=str(model))), dev)


def mean_on_dev(model: SentenceTransformer, folder: Path) -> float:
    """nDCG@10 of the dev split."""
    return float(stages.scores_of(model, read_task(folder, "dev"))[MAIN_METRIC].mean())


def vocabulary(work: Work, name: str) -> dict[str, Any]:
    """Fewer tokens, no training."""
    run = work.folder / "runs" / name
    tokens = "student.vocabulary=used" if work.small else "student.vocabulary=12000"
    words = [f"output={run}", "overwrite=true", f"data.train={work.data(CODE)}", tokens]
    stages.student(load("trim_vocab", words))
    facts = json.loads((run / "student.json").read_text(encoding="utf-8"))
    test = read_task(work.data(CODE), "test")
    scores = {
        who: test_scores(work, who, encoder(path), CODE)
        for who, path in ((TEACHER, EMBEDDED), (name, str(run / "model")))
    }
    return facts | {
        "data": CODE,
        "queries": len(test.queries),
        "teacher": summary(scores[TEACHER], scores[TEACHER]),
        "student": summary(scores[name], scores[TEACHER]),
    }


# Students that are tuned, and merged


def tuned(work: Work, name: str) -> dict[str, Any]:
    """The aligned student learns from labels, the teacher's ranking, and mined negatives."""
    source, limit = TUNED[name]
    part(work, source)
    data = STUDENTS[source].data
    student = work.folder / "runs" / source / "model"
    train = limited(work, data, limit)
    mined = work.folder / "mined" / name
    model = [f"model.path={student}", f"data.train={train}"]
    if not (mined / "mined.parquet").exists():
        stages.mine(load("distil_kl", [*model, f"output={mined}", "overwrite=true"]))
    run = work.folder / "runs" / name
    words = [*common(work, data, run), *model, f"data.mined={mined / 'mined.parquet'}", *TUNE]
    trained = timed(run, lambda: stages.distil(load("distil_kl", words)))
    return judged(work, data, run, trained) | {"settings": TUNE, "rows": limit}


def limited(work: Work, data: str, limit: int) -> Path:
    """Pairs of the training split, at most so many queries, beside the whole corpus."""
    source = work.data(data)
    task = read_task(source, "train")
    if len(task.queries) <= limit:
        return source
    folder = work.folder / "data" / f"{data}-{limit}"
    if not folder.exists():
        asked = task.queries.ids[:: -(-len(task.queries) // limit)]
        texts = dict(zip(task.queries.ids, task.queries.texts, strict=True))
        others = [read_task(source, split).qrels.values() for split in ("dev", "test")]
        unseen = {d for rows in others for judged in rows for d in judged}
        wanted = {d for q in asked for d in task.qrels[q]}
        documents = zip(task.documents.ids, task.documents.texts, strict=True)
        corpus = {d: text for d, text in documents if d in wanted or d not in unseen}
        grades = {q: task.qrels[q] for q in asked}
        write_collection(folder, corpus, {q: texts[q] for q in asked}, {"train": grades})
    return folder


def merge(work: Work, name: str) -> dict[str, Any]:
    """Fine-tune the teacher itself, and find the mean that forgets nothing."""
    run, out = work.folder / "runs" / "teacher_tuned", work.folder / "runs" / name
    words = [f"output={run}", f"data.train={work.data(CODE)}"]
    tuned_model = timed(run, lambda: stages.finetune(load("short_pairs", words)))["model"]
    for other in OTHERS:
        halves = work.folder / "data" / other
        if not halves.with_name(f"{other}-report").exists():
            sizes = (work.small or MERGE_DOCUMENTS, work.small or MERGE_QUERIES, work.small)
            write_halves(work.shared / other, halves, *sizes)
    keep = [work.folder / "data" / f"{other}-choose" for other in OTHERS]
    points = 3 if work.small else 11
    curve = stages.merge_curve(
        EMBEDDED, tuned_model, work.data(CODE), out, keep=keep, points=points, overwrite=True
    )
    models = {"base": EMBEDDED, "tuned": tuned_model, "merged": str(out)}
    tests = {CODE: CODE} | {other: f"{other}-report" for other in OTHERS}
    found: dict[str, Any] = {}
    for data, folder in tests.items():
        scores = {who: test_scores(work, who, encoder(p), folder) for who, p in models.items()}
        found[data] = {who: summary(s, scores["base"]) for who, s in scores.items()}
    gains = {who: found[CODE][who]["against_teacher"]["mean"] for who in ("tuned", "merged")}
    return {
        "curve": curve.facts(),
        "chosen": curve.chosen,
        "test": found,
        "gain_kept": gains["merged"] / gains["tuned"] if gains["tuned"] else None,
    }


def all_students(work: Work, name: str) -> dict[str, Any]:
    """The retention table of the students of code_nl2bash."""
    students = ("three_code", "two_code", "static_code")
    for student in students:
        part(work, student)
    models = {TEACHER: encoder(EMBEDDED)} | {
        student: encoder(str(work.folder / "runs" / student / "model")) for student in students
    }
    return retention(models, read_task(work.data(CODE), "test"), work.dims, work.rounds)


PARTS: dict[str, Callable[[Work, str], dict[str, Any]]] = {
    "three_code": aligned,
    "three_debian": aligned,
    "two_code": aligned,
    "static_code": static,
    "vocabulary_code": vocabulary,
    "tuned_code": tuned,
    "tuned_debian": tuned,
    "merge": merge,
    "retention": all_students,
}


# What all of them do


def common(work: Work, data: str, run: Path) -> list[str]:
    """Settings of every run."""
    return [f"output={run}", f"data.train={work.data(data)}", *QUIET]


def timed(run: Path, train: Callable[[], Path]) -> dict[str, Any]:
    """The trained model and the seconds it took; a run that was stopped says so."""

    def work() -> dict[str, Any]:
        if (run / "model").exists():  # finished, but stopped before its time was written
            shutil.rmtree(run)
        resumed = any((run / "checkpoints").glob("step-*"))
        start = time.perf_counter()
        model = train()
        return {
            "model": str(model),
            "seconds": time.perf_counter() - start,
            "resumed": resumed,  # then the seconds are those of the last part alone
        }

    return kept_json(run.with_name(f"{run.name}-trained.json"), work)


def step(work: Work, name: str, *how: str) -> Path:
    """The file of one try."""
    return work.folder / "tries" / f"{name}-{'-'.join(how)}.json"


def judged(work: Work, data: str, run: Path, trained: Mapping[str, Any]) -> dict[str, Any]:
    """A trained student beside its teacher: both ways, before training, and how fast."""
    teacher, student = encoder(EMBEDDED), encoder(trained["model"])
    ways = {
        TEACHER: teacher,
        "student": student,
        "asymmetric": pair_models(student, teacher, ("student", TEACHER)),
    }
    if (run / "student" / "model").exists():
        ways["untrained"] = encoder(str(run / "student" / "model"))
    scores = {
        who: test_scores(work, who if who == TEACHER else f"{run.name}-{who}", model, data)
        for who, model in ways.items()
    }
    test = read_task(work.data(data), "test")
    both = {TEACHER: teacher, "student": student}
    return {
        "data": data,
        "queries": len(test.queries),
        "minutes": trained["seconds"] / 60,
        "resumed": trained["resumed"],
        "sizes": {who: asdict(Size.of(model)) for who, model in both.items()},
        "speed": rates(both, test.documents.texts, test.queries.texts, work.rounds),
        **{who: summary(found, scores[TEACHER]) for who, found in scores.items()},
    }


def encoder(path: str) -> SentenceTransformer:
    """A model as it is scored and timed: every transformer at the teacher's own length."""
    model = load_encoder(ModelConfig(path=path)).to(default_device())
    if layer_count(model):
        model.max_seq_length = max_length(load_encoder(ModelConfig(path=EMBEDDED)))
    return model


def test_scores(work: Work, name: str, model: SentenceTransformer, data: str) -> dict[str, float]:
    """nDCG@10 of every test query."""
    folder = work.folder / "data" / data
    if not folder.exists():
        raise UserError(f"{folder}: missing; remove {work.folder / 'parts'} and run again")
    result = stages.evaluate_model(model, name, read_task(folder), work.folder / "evaluated")
    return result.scores[MAIN_METRIC]


if __name__ == "__main__":
    main()
