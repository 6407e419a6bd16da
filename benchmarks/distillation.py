"""What distillation reaches: `python -m benchmarks.distillation --shared DIR --work DIR`.

all-MiniLM-L6-v2 is the teacher throughout. Students learn from the texts of a collection's
training split, without labels unless they are said to be tuned, and are scored on its test split;
whatever is chosen is chosen on a dev part of the training queries. Settings are those of the
recipes in configs/. Parts (`--only PART ...`):

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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.collections import kept_json, write_halves, write_with_dev
from benchmarks.machine import RESULTS, machine
from tercet import stages
from tercet.configs import Config, ModelConfig, load
from tercet.data import RetrievalTask, read_similarity, read_task, with_mined
from tercet.evaluation import MAIN_METRIC
from tercet.evaluation.retention import TEACHER, retention, summary
from tercet.evaluation.speed import rates
from tercet.files import write_json
from tercet.models import (
    EMBEDDED,
    Corpus,
    Size,
    default_device,
    load_encoder,
    max_length,
    merge_line,
    pair_models,
)
from tercet.models.layers import layer_count
from tercet.models.static import static_student, token_vectors
from tercet.models.vocabulary import token_counts
from tercet.progress import say
from tercet.report.retention import retention_plot
from tercet.stages.merging import Curve, Point, best_share
from tercet.train.rows import read_rows
from tercet.train.teacher import load_teacher

CODE, DEBIAN = "code_nl2bash", "debian_desc"
OTHERS = ("scifact", "cranfield", "stackfaq", DEBIAN)
PAIRS = "stsb_en/test.tsv"  # sentences that people have scored
STUDENTS = {  # part -> collection, recipe
    "three_code": (CODE, "distil_align"),
    "three_debian": (DEBIAN, "distil_many"),
    "two_code": (CODE, "distil_2layer"),
}
CENTRES, SIFS = (True, False), (0.0, 1e-4, 1e-3, 1e-2)  # of static students, chosen on dev
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # the same, after
TRIAL_EPOCHS = 4
LABELLED = (  # a static student may learn the labels too, if that is better on dev
    "distil.infonce=1",
    "loss.directions=[query_to_document,document_to_query]",
)
TUNED = {  # part -> whom, and what the recipe distil_kl is told: 16,384 rows of many
    "tuned_code": ("three_code", ()),
    "tuned_debian": ("three_debian", ("train.steps=128",)),
}
POINTS = 6  # of the merge curve
GUARD_DOCUMENTS = 800  # besides the answers, of a collection that guards the choice of a merge
REPORT_DOCUMENTS = 10_000  # the same of one that the merge is reported on
HASTY = ("batch.micro_tokens=2048", "overwrite=false")


@dataclass(frozen=True)
class Work:
    """Where things are, and how much is done."""

    shared: Path
    folder: Path
    small: int | None
    rounds: int
    dims: Sequence[int] = (128,)

    def whole(self, name: str) -> Path:
        """A collection as it is: train and test."""
        return self.data(name) if self.small else self.shared / name

    def data(self, name: str) -> Path:
        """A collection whose training split has given a part to a dev split."""
        folder = self.folder / "data" / name
        if not folder.exists():
            write_with_dev(self.shared / name, folder, self.small)
        return folder


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
        retention_plot(found["retention"], asked.out / "distillation.svg")


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
    data, recipe = STUDENTS[name]
    run = work.folder / "runs" / name
    config = load(recipe, common(work.whole(data), run))
    return judged(work, data, run, trained(run, config)) | {"recipe": recipe}


def static(work: Work, name: str) -> dict[str, Any]:
    """Choose on dev how the table is made and how it learns, train it, score it."""
    dev = work.data(CODE)
    made = {}
    for centre in CENTRES[:1] if work.small else CENTRES:
        for sif in SIFS[-2:] if work.small else SIFS:
            how = (f"student.centre={str(centre).lower()}", f"student.sif={sif}")
            made[how] = kept_json(
                step(work, name, *how),
                lambda centre=centre, sif=sif: {"ndcg": untrained(dev, centre, sif)},
            )["ndcg"]
    table = max(made, key=lambda how: made[how])
    tried: dict[tuple[str, ...], float] = {}

    def attempt(*how: str) -> None:
        tried[how] = kept_json(
            step(work, name, *how), lambda: {"ndcg": trial(work, dev, table, how)}
        )["ndcg"]

    for rate in RATES[-2:] if work.small else RATES:
        attempt(f"train.learning_rate={rate}")
    attempt(*max(tried, key=lambda how: tried[how]), *LABELLED)
    best = max(tried, key=lambda how: tried[how])
    run = work.folder / "runs" / name
    watched = f"evaluation.dev={dev}"  # the best step is kept: twenty epochs may be too many
    config = load("student_static", [*common(dev, run), *table, *best, watched])
    return judged(work, CODE, run, trained(run, config)) | {
        "recipe": "student_static",
        "settings": [*table, *best],
        "tables_on_dev": {" ".join(how): score for how, score in made.items()},
        "trials_on_dev": {" ".join(how): score for how, score in tried.items()},
    }


def untrained(dev: Path, centre: bool, sif: float) -> float:
    """nDCG@10 on dev of a static student before training."""
    teacher = encoder(EMBEDDED)
    model = static_student(teacher, *tokens_alone(dev), None, sif, centre)
    return mean_on_dev(model, dev)


@cache
def tokens_alone(folder: Path) -> tuple[Any, Any]:
    """The teacher's vector of each token, and how often each occurs in the training texts."""
    rows = read_rows(load("student_static", [f"data.train={folder}"]).data)
    corpus: Corpus = {"query": rows.queries.texts, "document": rows.documents.texts}
    teacher = encoder(EMBEDDED)
    return token_vectors(teacher), token_counts(teacher, corpus)


def trial(work: Work, dev: Path, table: Sequence[str], how: Sequence[str]) -> float:
    """nDCG@10 on dev after a few epochs."""
    out = work.folder / "trial"
    shutil.rmtree(out, ignore_errors=True)
    words = [*common(dev, out), *table, *how, f"train.epochs={TRIAL_EPOCHS}"]
    model = stages.distil(load("student_static", words))
    return mean_on_dev(encoder(str(model)), dev)


def mean_on_dev(model: SentenceTransformer, folder: Path) -> float:
    """nDCG@10 of the dev split."""
    return float(np.mean(list(per_query(model, read_task(folder, "dev")).values())))


def vocabulary(work: Work, name: str) -> dict[str, Any]:
    """Fewer tokens, no training."""
    run = work.folder / "runs" / name
    folder = work.whole(CODE)
    words = [f"output={run}", "overwrite=true", f"data.train={folder}"]
    words += ["student.vocabulary=used"] if work.small else []
    stages.student(load("trim_vocab", words))
    facts = json.loads((run / "student.json").read_text(encoding="utf-8"))
    task = read_task(folder)
    scores = {
        who: test_scores(work, who, encoder(path), task)
        for who, path in ((TEACHER, EMBEDDED), (name, str(run / "model")))
    }
    return facts | {
        "data": CODE,
        "queries": len(task.queries),
        "teacher": summary(scores[TEACHER], scores[TEACHER]),
        "student": summary(scores[name], scores[TEACHER]),
    }


# Students that are tuned, and merged


def tuned(work: Work, name: str) -> dict[str, Any]:
    """The aligned student learns from labels, the teacher's ranking, and mined negatives."""
    source, more = TUNED[name]
    part(work, source)
    data, _ = STUDENTS[source]
    student = work.folder / "runs" / source / "model"
    mined = work.folder / "mined" / name
    words = [f"model.path={student}", f"data.train={work.whole(data)}"]
    if not (mined / "mined.parquet").exists():
        stages.mine(load("distil_kl", [*words, f"output={mined}", "overwrite=true"]))
    run = work.folder / "runs" / name
    words = [*common(work.whole(data), run), *words, f"data.mined={mined / 'mined.parquet'}"]
    config = load("distil_kl", [*words, *(["train.steps=2"] if work.small else more)])
    facts = {"recipe": "distil_kl", "settings": more}
    if config.train.steps is not None:
        facts["rows"] = config.train.steps * config.batch.size
    return judged(work, data, run, trained(run, config)) | facts


def merge(work: Work, name: str) -> dict[str, Any]:
    """Fine-tune the teacher itself, and find the mean that forgets nothing."""
    run, out = work.folder / "runs" / "teacher_tuned", work.folder / "runs" / name
    config = load("short_pairs", [f"output={run}", f"data.train={work.data(CODE)}"])
    tuned_model = timed(run, lambda: stages.finetune(config))["model"]
    halves = {other: halves_of(work, other) for other in OTHERS}
    tasks = [
        read_task(work.data(CODE), "dev"),
        *(read_task(choose) for choose, _ in halves.values()),
    ]
    curve = curve_of(work, name, tuned_model, tasks)
    parts = [EMBEDDED, tuned_model], [1 - curve.chosen, curve.chosen]
    stages.merge(*parts, out, overwrite=True)
    models = {"base": EMBEDDED, "tuned": tuned_model, "merged": str(out)}
    found: dict[str, Any] = {}
    reported = [read_task(work.whole(CODE)), *(read_task(report) for _, report in halves.values())]
    for task in reported:
        scores = {who: test_scores(work, who, encoder(p), task) for who, p in models.items()}
        found[task.name.removesuffix("-report")] = {"documents": len(task.documents)} | {
            who: summary(s, scores["base"]) for who, s in scores.items()
        }
    gains = {who: found[CODE][who]["against_teacher"]["mean"] for who in ("tuned", "merged")}
    return {
        "curve": curve.facts(),
        "chosen": curve.chosen,
        "test": found,
        "similarity": similarity(work, models),
        "gain_kept": gains["merged"] / gains["tuned"] if gains["tuned"] else None,
    }


def halves_of(work: Work, other: str) -> tuple[Path, Path]:
    """A part of a collection's test queries to choose by, and the rest to report."""
    folder = work.folder / "data" / other
    choose, report = (folder.with_name(f"{other}-{half}") for half in ("choose", "report"))
    if not report.exists():
        write_halves(
            work.shared / other,
            folder,
            (work.small or GUARD_DOCUMENTS, work.small or REPORT_DOCUMENTS),
            work.small,
        )
    return choose, report


def curve_of(work: Work, name: str, tuned_model: str, tasks: Sequence[RetrievalTask]) -> Curve:
    """The line from the teacher to its tuned self; each point is kept when it has been scored."""
    shares = np.linspace(0, 1, 3 if work.small else POINTS).round(6).tolist()
    files = {share: step(work, name, f"share={share}") for share in shares}
    missing = [share for share in shares if not files[share].exists()]
    ends = (encoder(path) for path in (EMBEDDED, tuned_model))
    line = merge_line(next(ends), next(ends), missing, ("base", "tuned"))
    points = []
    for share in shares:

        def score() -> dict[str, Any]:
            model = next(line)
            return {task.name: per_query(model, task) for task in tasks}

        points.append(Point(share, kept_json(files[share], score)))
    return Curve(tasks[0].name, tuple(points), best_share(points, tasks[0].name))


def similarity(work: Work, models: Mapping[str, str]) -> dict[str, Any]:
    """Spearman's correlation with people's scores, with its interval."""
    task, out = read_similarity(work.shared / PAIRS), work.folder / "evaluated"
    results = {
        who: stages.evaluate_similarity(encoder(path), who, task, out)
        for who, path in models.items()
    }
    return {who: asdict(found.means[found.main]) for who, found in results.items()}


def all_students(work: Work, name: str) -> dict[str, Any]:
    """The retention table of the students of code_nl2bash."""
    students = ("three_code", "two_code", "static_code")
    for student in students:
        part(work, student)
    models = {TEACHER: encoder(EMBEDDED)} | {
        student: encoder(str(work.folder / "runs" / student / "model")) for student in students
    }
    folder = work.whole(CODE)
    timed_queries = read_task(folder, "train").queries.texts
    return retention(models, read_task(folder), work.dims, work.rounds, timed_queries)


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


def common(data: Path, run: Path) -> list[str]:
    """Settings of every run."""
    return [f"output={run}", f"data.train={data}", *HASTY]


def trained(run: Path, config: Config) -> dict[str, Any]:
    """The trained model, and the seconds of the teacher's vectors and of all that follows."""

    def teach() -> dict[str, Any]:
        start = time.perf_counter()
        rows = read_rows(config.data)
        data = rows if config.data.mined is None else with_mined(rows, config.data.mined)
        load_teacher(config, data, default_device())
        return {"seconds": time.perf_counter() - start}

    taught = kept_json(run.with_name(f"{run.name}-taught.json"), teach)
    found = timed(run, lambda: stages.distil(config))
    return found | {"teacher_seconds": taught["seconds"]}


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


def judged(work: Work, data: str, run: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """A trained student beside its teacher: both ways, before training, and how fast."""
    teacher, student = encoder(EMBEDDED), encoder(found["model"])
    ways = {
        TEACHER: teacher,
        "student": student,
        "asymmetric": pair_models(student, teacher, ("student", TEACHER)),
    }
    if data == CODE and (run / "student" / "model").exists():  # a large corpus takes long
        ways["untrained"] = encoder(str(run / "student" / "model"))
    task = read_task(work.whole(data))
    scores = {
        who: test_scores(work, who if who == TEACHER else f"{run.name}-{who}", model, task)
        for who, model in ways.items()
    }
    both = {TEACHER: teacher, "student": student}
    asked = read_task(work.whole(data), "train").queries.texts
    return {
        "data": data,
        "queries": len(task.queries),
        "minutes": found["seconds"] / 60,
        "teacher_minutes": found["teacher_seconds"] / 60,
        "resumed": found["resumed"],
        "sizes": {who: asdict(Size.of(model)) for who, model in both.items()},
        "speed": rates(both, task.documents.texts, asked, work.rounds),
        **{who: summary(values, scores[TEACHER]) for who, values in scores.items()},
    }


def encoder(path: str) -> SentenceTransformer:
    """A model as it is scored and timed: every transformer at the teacher's own length."""
    model = load_encoder(ModelConfig(path=path)).to(default_device())
    if layer_count(model):
        model.max_seq_length = teachers_length()
    return model


@cache
def teachers_length() -> int:
    return max_length(load_encoder(ModelConfig(path=EMBEDDED)))


def per_query(model: SentenceTransformer, task: RetrievalTask) -> dict[str, float]:
    """nDCG@10 of each query, with vectors that are not kept."""
    values = stages.scores_of(model, task)[MAIN_METRIC]
    return dict(zip(task.qrels, values.tolist(), strict=True))


def test_scores(
    work: Work, name: str, model: SentenceTransformer, task: RetrievalTask
) -> dict[str, float]:
    """The same of a test split, with vectors that are kept for the next model beside it."""
    result = stages.evaluate_model(model, name, task, work.folder / "evaluated")
    return result.scores[MAIN_METRIC]


if __name__ == "__main__":
    main()
