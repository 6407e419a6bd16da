"""What distillation reaches: `python -m benchmarks.distillation --shared DIR --work DIR`.

all-MiniLM-L6-v2 is the teacher throughout. Students learn from the texts of a collection's
training split, without labels unless they are said to be tuned, and are scored on its test split;
whatever is chosen is chosen on a dev part of the training queries. Settings are those of the
recipes in configs/. Parts (`--only PART ...`; the first and the third also under other seeds,
`--seeds N`):

three_code                three of six layers on code_nl2bash
three_debian              the same on debian_desc
two_code                  two of six layers on code_nl2bash
static_code               a static student on code_nl2bash
vocabulary_code           the teacher with 12,000 tokens on code_nl2bash
tuned_code, tuned_debian  the three-layer student, fine-tuned with InfoNCE, KL and mined negatives
merge                     the teacher and its fine-tuned self, and what lies between
retention                 every student of code_nl2bash beside the teacher

Each step leaves a JSON in the work folder and is repeated only with other settings, weights, code
or another processor, so the program can be stopped at any time; a training that was stopped goes
on. What is there is merged into distillation.json, each part with the machine and the code that
measured it; parts that are in that file alone, of another work folder, stay. What `--small` makes
has a folder of its own.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.collections import contents
from benchmarks.distillation_aims import aims
from benchmarks.distillation_merge import merge
from benchmarks.distillation_static import RECIPE, choose, static_config
from benchmarks.distillation_work import (
    CODE,
    DEBIAN,
    OTHERS,
    PAIRS,
    Work,
    at_one_length,
    common,
    encoder,
    test_scores,
)
from benchmarks.kept import kept_json, mined, trained, weights
from benchmarks.machine import RESULTS, machine, measured_here, refuse_published
from tercet import stages
from tercet.configs import Config, load
from tercet.data import read_task
from tercet.evaluation.retention import TEACHER, retention, summary
from tercet.evaluation.speed import rates
from tercet.files import fingerprint, write_json
from tercet.models import EMBEDDED, Size, default_device, max_length, pair_models, resolve
from tercet.progress import say
from tercet.report.retention import retention_plot
from tercet.train.frozen import load_teacher
from tercet.train.rows import read_data
from tercet.versions import installed_versions, whole_source

STUDENTS = {  # part -> collection, recipe
    "three_code": (CODE, "distil_align"),
    "three_debian": (DEBIAN, "distil_many"),
    "two_code": (CODE, "distil_2layer"),
}
SEEDED = ("three_code", "two_code")  # also trained under other seeds than the recipes'
SEED = "_seed"  # between the name of such a part and its seed
STATIC = "static_code"
TUNED = {  # part -> whom, and what the recipe distil_kl is told: 16,384 rows of many
    "tuned_code": ("three_code", ()),
    "tuned_debian": ("three_debian", ("train.steps=128",)),
}
PROGRAM = ("collections", "distillation", "distillation_aims", "distillation_merge")
PROGRAM += ("distillation_static", "distillation_work", "kept")


def main() -> None:
    """Run what is missing, merge what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of every measurement of speed")
    parser.add_argument("--seeds", type=int, default=1, help=f"of {' and '.join(SEEDED)}")
    parser.add_argument("--small", type=int, help="so many queries a split: to try it out")
    asked = parser.parse_args()
    if asked.small:
        refuse_published(parser, asked.out)
    os.environ["TERCET_CACHE"] = str(asked.work / "cache")
    folder = asked.work / f"small-{asked.small}" if asked.small else asked.work
    work = Work(asked.shared, folder, asked.small, asked.rounds)
    take_over(work, asked.out / "distillation.json")
    for name in (n for first in asked.only for n in (first, *others(first, asked.seeds))):
        part(work, name)
        write_json(asked.out / "distillation.json", done(work))
    found = done(work)
    if "retention" in found:
        retention_plot(found["retention"], asked.out / "distillation.svg")
    now = made_by(work)
    if old := [name for name, section in found.items() if section.get("made_by") != now]:
        say(f"of other code, options or processor, to be run again: {', '.join(old)}")


def part(work: Work, name: str) -> dict[str, Any]:
    """The section of one part; computed if it is not there, or was made by anything else."""
    say(f"part {name}")

    def measured() -> dict[str, Any]:
        found = PARTS[first_of(name)](work, name)
        return measured_here(found | {"targets": aims(first_of(name), found)})

    return kept_json(file_of(work, name), measured, made_by(work))


def others(name: str, seeds: int) -> list[str]:
    """The parts that are the same under other seeds, to make `seeds` of them."""
    return [f"{name}{SEED}{seed}" for seed in range(1, seeds)] if name in SEEDED else []


def first_of(name: str) -> str:
    """The part whose like under another seed `name` is."""
    return name.partition(SEED)[0]


def made_by(work: Work) -> dict[str, Any]:
    """With what the figures of a part are measured."""
    files = [Path(__file__).with_name(f"{name}.py") for name in PROGRAM]
    here = machine()
    return {
        "source": whole_source(),
        "program": fingerprint(file.read_bytes() for file in files)[:12],
        "small": work.small,
        "rounds": work.rounds,
        "dims": list(work.dims),
        "data": contents(*(work.shared / name for name in (CODE, *OTHERS, PAIRS))),
        "packages": installed_versions(),
        **{name: here[name] for name in ("processor", "threads")},
    }


def done(work: Work) -> dict[str, Any]:
    """Every section that is there."""
    again = sorted((work.folder / "parts").glob(f"*{SEED}*.json"))
    files = [
        file
        for name in PARTS
        for file in (file_of(work, name), *(f for f in again if first_of(f.stem) == name))
    ]
    return {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in files if f.exists()}


def take_over(work: Work, result: Path) -> None:
    """Make sections of an earlier result parts of this work folder, where it has none."""
    sections = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    for name, section in sections.items():
        if not file_of(work, name).exists():
            write_json(file_of(work, name), section)


def file_of(work: Work, name: str) -> Path:
    return work.folder / "parts" / f"{name}.json"


# The parts


def aligned(work: Work, name: str) -> dict[str, Any]:
    """Cut, train on texts alone, score both ways."""
    first = first_of(name)
    data, recipe = STUDENTS[first]
    speed = None if name == first else part(work, first)["speed"]  # the numbers alone differ
    return judged(work, name, data, config_of(work, name), speed) | {"recipe": recipe}


def static(work: Work, name: str) -> dict[str, Any]:
    """Choose on dev how the table is made and how it learns, train it, score it."""
    teacher_seconds(work, load(RECIPE, common(work.data(CODE), work.run(name))))  # before any try
    choice = choose(work, name)
    tables, trials = (
        {" ".join(how): one["ndcg"] for how, one in tries.items()}
        for tries in (choice.tables, choice.trials)
    )
    return judged(work, name, CODE, config_of(work, name)) | {
        "recipe": RECIPE,
        "settings": choice.settings,
        "tables_on_dev": tables,
        "trials_on_dev": trials,
        "choosing_minutes": choice.seconds / 60,
    }


def vocabulary(work: Work, name: str) -> dict[str, Any]:
    """Fewer tokens, no training."""
    run, folder = work.run(name), work.whole(CODE)
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


def tuned(work: Work, name: str) -> dict[str, Any]:
    """The aligned student learns from labels, the teacher's ranking, and mined negatives."""
    source, more = TUNED[name]
    speed = part(work, source)["speed"]  # no layer comes or goes
    data, _ = STUDENTS[source]
    words = [*common(work.whole(data), work.run(name)), f"model.path={model_of(work, source)}"]
    negatives = mined(work.folder / "mined" / name, load("distil_kl", words))
    words += [f"data.mined={negatives['file']}", *(["train.steps=2"] if work.small else more)]
    config = load("distil_kl", words)
    facts = {"recipe": "distil_kl", "settings": more}
    if config.train.steps is not None:
        facts["rows"] = config.train.steps * config.batch.size
    return judged(work, name, data, config, speed) | facts


def all_students(work: Work, name: str) -> dict[str, Any]:
    """The retention table of the students of code_nl2bash."""
    students = ("three_code", "two_code", STATIC)
    for student in students:
        part(work, student)
    models = {TEACHER: encoder(EMBEDDED)} | {
        student: encoder(model_of(work, student)) for student in students
    }
    folder = work.whole(CODE)
    timed_queries = read_task(folder, "train").queries.texts
    return retention(models, read_task(folder), work.dims, work.rounds, timed_queries)


PARTS: dict[str, Callable[[Work, str], dict[str, Any]]] = {
    **dict.fromkeys(STUDENTS, aligned),
    STATIC: static,
    "vocabulary_code": vocabulary,
    **dict.fromkeys(TUNED, tuned),
    "merge": merge,
    "retention": all_students,
}


# What all students do


def config_of(work: Work, name: str) -> Config:
    """How a student learns that is not tuned."""
    if name == STATIC:
        return static_config(work, name)
    first, _, seed = name.partition(SEED)
    data, recipe = STUDENTS[first]
    words = [f"train.seed={seed}"] if seed else []
    return load(recipe, [*common(work.whole(data), work.run(name)), *words])


def model_of(work: Work, name: str) -> str:
    """The model of such a student, trained if it is not there."""
    return trained(work.run(name), config_of(work, name), stages.distil)["model"]


def teacher_seconds(work: Work, config: Config) -> float:
    """How long the teacher's vectors took, of the first run that needed them."""
    _, data = read_data(config)

    def teach() -> dict[str, Any]:
        start = time.perf_counter()
        load_teacher(config, data, default_device())
        return {"seconds": time.perf_counter() - start}

    teachers = [weights(resolve(teacher.path)) for teacher in config.distil.teacher]
    needs = {"teachers": teachers, "data": data.fingerprint}
    name = fingerprint([*teachers, data.fingerprint])[:12]
    return kept_json(work.folder / "taught" / f"{name}.json", teach, needs)["seconds"]


def judged(
    work: Work, name: str, data: str, config: Config, speed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train a student and put it beside its teacher: both ways, before training, and how fast.

    `speed`: that of a model of the same shape, where it has been measured.
    """
    seconds = teacher_seconds(work, config)
    found = trained(work.run(name), config, stages.distil)
    teacher, student = encoder(EMBEDDED), encoder(found["model"])
    ways = {
        TEACHER: teacher,
        "student": student,
        "asymmetric": pair_models(student, teacher, ("student", TEACHER)),
    }
    before = Path(found["model"]).parent / "student" / "model"
    if data == CODE and before.exists():  # a large corpus takes long
        ways["untrained"] = encoder(str(before))
    task = read_task(work.whole(data))
    scores = {
        who: test_scores(work, who if who == TEACHER else f"{name}-{who}", model, task)
        for who, model in ways.items()
    }
    both = {TEACHER: teacher, "student": student}
    sizes = {who: asdict(Size.of(model)) for who, model in both.items()}
    lengths = {who: max_length(model) for who, model in both.items()}
    if speed is None:
        asked = read_task(work.whole(data), "train").queries.texts
        speed = rates(at_one_length(both), task.documents.texts, asked, work.rounds)
    return {
        "data": data,
        "queries": len(task.queries),
        "minutes": found["seconds"] / 60,
        "teacher_minutes": seconds / 60,
        "parts": found["parts"],  # in which it was trained, if it was stopped
        "sizes": sizes,
        "max_length": lengths,
        "speed": speed,
        **{who: summary(values, scores[TEACHER]) for who, values in scores.items()},
    }


if __name__ == "__main__":
    main()
