"""The stages as functions of a config or of paths: what the command line and Python both call.

Each reads files, writes files and returns what it found. Stages never import one another below
this module; here they are put together.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from tercet.configs import Config, ModelConfig, RescoreConfig, Source, StudentConfig, load, save
from tercet.configs.load import recipes
from tercet.data import RetrievalTask, read_corpus, read_task, read_training
from tercet.data.check import FolderReport, Report, check_folder, check_sources
from tercet.errors import UserError
from tercet.evaluation import (
    Result,
    bm25_run,
    comparison,
    evaluate_vectors,
    installed_versions,
    known_metric,
    read_result,
    score_runs,
    score_task,
    write_result,
    write_run,
)
from tercet.evaluation.bm25 import NAME as BM25
from tercet.export import export_model, made_card, model_card
from tercet.files import fingerprint, writable_folder, write_json, write_text
from tercet.mining import BM25 as LEXICAL
from tercet.mining import MODEL, Asked, MinedCounts, Space, asked_queries
from tercet.mining import mine as mine_asked
from tercet.mining.stage import SUMMARY
from tercet.models import (
    EMBEDDED,
    Corpus,
    Student,
    default_device,
    encode,
    load_encoder,
    make_student,
    max_length,
    merge_models,
    model_fingerprint,
    prompt_of,
    resolve,
    vectors,
)
from tercet.models.cross import CrossScorer, load_scorer
from tercet.models.tokenizer import load_tokenizer
from tercet.processes import on_main, share_mistakes
from tercet.progress import is_main_process, say
from tercet.report import delta_line, markdown_table, mining_page, model_table, size_table
from tercet.train import Evaluate, Trained
from tercet.train import finetune as train_model
from tercet.train.output import refuse_other_run
from tercet.train.rows import read_rows

MINED = "mined.parquet"
PROOF_TEXTS = 64  # training texts on which an export is compared with its checkpoint


@dataclass(frozen=True)
class Mined:
    """A finished mining stage: the file to name as data.mined, and what became of candidates."""

    path: Path
    counts: MinedCounts
    page: Path  # to read


def finetune(config: Config) -> Path:
    """Train, then export the best model (the last, without a dev set) to `<output>/model`.

    Works under `accelerate launch`; returns the model folder on every process.
    """
    trained = train_model(config, evaluate=_dev_evaluator(config))
    run = Path(config.output)
    if is_main_process():
        write_json(run / "summary.json", _summary(trained))
        export_run(run, run / "model")
    return run / "model"


def distil(config: Config) -> Path:
    """Train a student on the vectors of `config.distil.teacher`, then export it as `finetune` does.

    If `config.student` cuts anything, the student is first made of `config.model`, in
    `<output>/student`; otherwise `config.model` itself is trained.
    """
    if not config.distil.teacher:
        raise UserError("distil.teacher is missing: name the model to learn from")
    if config.student == StudentConfig():
        return finetune(config)
    folder = Path(config.output) / "student"

    def make() -> None:
        refuse_other_run(config)
        if config.overwrite or not (folder / "model").exists():
            student(config.model_copy(update={"output": str(folder), "overwrite": True}))

    on_main(make)
    body = config.model.model_copy(update={"path": str(folder / "model")})
    return finetune(config.model_copy(update={"model": body}))


def mine(config: Config) -> Mined:
    """Mine hard negatives for `config.data.train` with `config.model`.

    Writes `<output>/mined.parquet`, `mining.json`, the page `mining.html` and the resolved config
    as `mine.yaml`. Works under `accelerate launch`; returns the same on every process.
    """
    folder = Path(config.output)
    path, page = folder / MINED, folder / "mining.html"
    with share_mistakes():
        writable_folder(folder)
        if path.exists() and not config.overwrite:
            raise UserError(f"output: {path} exists; choose another folder or say overwrite=true")
        models = _mining_models(config)
        scorer = _scorer(config.mining.rescore)
        asked = _asked(config)
    spaces, miner = {}, ""
    for source, settings in models.items():
        encoder = load_encoder(settings).to(default_device())
        spaces[source] = space_of(encoder, asked)
        miner = miner or model_fingerprint(encoder)
    counts = mine_asked(asked, spaces, config.mining, path, miner=miner, scorer=scorer)

    def write() -> None:
        save(config, folder / "mine.yaml")
        write_text(page, mining_page(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))))

    on_main(write)
    return Mined(path, counts, page)


def _asked(config: Config) -> Asked:
    """What mining has to know of the training data, and of what must stay unseen."""
    if not config.data.train:
        raise UserError("data.train is missing: name a file of pairs or a BEIR folder")
    rows = read_training(config.data.train)
    known = [read_training([source]) for source in config.mining.known]
    held_out = []
    if not config.mining.held_out:
        held_out = [read_task(folder) for folder in config.data.held_out]
        if config.evaluation.dev is not None:
            held_out.append(read_task(config.evaluation.dev, config.evaluation.dev_split))
    return asked_queries(rows, known, held_out)


def _mining_models(config: Config) -> dict[str, ModelConfig]:
    """The models whose vectors mining needs, by source, the one that scores first."""
    others = [source for source in config.mining.sources if source not in (MODEL, LEXICAL)]
    trust = config.model.trust_remote_code
    models = {path: ModelConfig(path=path, trust_remote_code=trust) for path in others}
    resolve(config.model.path)
    for path in others:
        resolve(path, "mining.sources")
    return {MODEL: config.model, **models}


def _scorer(settings: RescoreConfig) -> CrossScorer | None:
    if settings.model is None:
        return None
    scorer = load_scorer(
        settings.model,
        max_length=settings.max_length,
        dtype=settings.dtype,
        calibration=settings.calibration,
        trust_remote_code=settings.trust_remote_code,
    )
    say(f"cross-encoder {scorer.name}: probability = {scorer.calibration}")
    return scorer


def space_of(encoder: SentenceTransformer, asked: Asked) -> Space:
    """Vectors of the asked queries and of all documents, from the store where they are there."""
    queries = vectors(encoder, asked.texts, "query", title="encode queries")
    documents = vectors(encoder, asked.documents.texts, "document", title="encode documents")
    return Space(queries, documents, fingerprint([queries.fingerprint, documents.fingerprint]))


def student(config: Config) -> Student:
    """Make a smaller model out of `config.model` as `config.student` says.

    Writes `<output>/model`, proven to load as what was made, `<output>/student.json` with the
    sizes, and the resolved config as `student.yaml`.
    """
    folder = writable_folder(Path(config.output))
    _refuse_existing(folder / "model", config.overwrite)
    resolve(config.model.path)
    corpus = _corpus(config)
    model = load_encoder(config.model).to(default_device())
    made = make_student(model, config.student, corpus, config.train.seed)
    card = made_card(
        name_of(str(folder / "model")),
        f"Made from `{name_of(config.model.path)}` with `tercet student`.",
        markdown_table(size_table(made.before, made.after)),
        config.student.model_dump(mode="json"),
    )
    texts = [text for part in corpus.values() for text in part[:PROOF_TEXTS]]
    export_model(
        made.model,
        folder / "model",
        card=card,
        texts=texts,
        overwrite=True,
        trust_remote_code=config.model.trust_remote_code,
    )
    facts = {"before": asdict(made.before), "after": asdict(made.after), "covered": made.covered}
    write_json(folder / "student.json", facts)
    save(config, folder / "student.yaml")
    return made


def _corpus(config: Config) -> Corpus:
    """The texts that a student is fitted to: those it is asked for, or those of training."""
    if config.student.corpus:
        return {"document": read_corpus(config.student.corpus)}
    if config.data.train or config.data.corpus:
        rows = read_rows(config.data)
        found: Corpus = {"query": rows.queries.texts, "document": rows.documents.texts}
        return {role: texts for role, texts in found.items() if texts}
    if config.student.needs_texts:
        raise UserError(
            "student.corpus is missing: cutting a vocabulary, a PCA and a static student need "
            "texts; name files of them, or data.train"
        )
    return {}


def merge(
    models: Sequence[str],
    weights: Sequence[float],
    out: Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Average the weights of models of one architecture; write the result to `out`, proven."""
    _refuse_existing(out, overwrite)
    names = [name_of(path) for path in models]
    loaded = [
        load_encoder(ModelConfig(path=path, trust_remote_code=trust_remote_code), "merge")
        for path in models
    ]
    merged = merge_models(loaded, weights, names)
    parts = [
        {"Model": name, "Weight": f"{weight:g}"}
        for name, weight in zip(names, weights, strict=True)
    ]
    card = made_card(name_of(str(out)), "A weighted mean of models.", markdown_table(parts))
    export_model(merged, out, card=card, overwrite=overwrite, trust_remote_code=trust_remote_code)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"output: {path} exists; choose another folder or say overwrite")


def check_data(
    path: str, overrides: Sequence[str] = (), model: str = EMBEDDED
) -> Report | FolderReport:
    """Diagnose a BEIR folder, a file of pairs, or everything a config or recipe trains on.

    Mistakes are gathered in the report's `problems` instead of raised. Token lengths are those
    of `model`'s tokenizer and maximum length, or of the config's model; if that has no tokenizer
    at hand they are left out, which is said.
    """
    is_recipe = path in recipes() and not Path(path).exists()
    if is_recipe or path.endswith((".yaml", ".yml")):
        config = load(path, overrides)
        held_out = [read_task(folder) for folder in config.data.held_out]
        return check_sources(config.data.train, *_tokenizer(config.model), held_out)
    tokenizer, longest = _tokenizer(ModelConfig(path=model))
    if (Path(path) / "qrels").is_dir():
        return check_folder(path, tokenizer, longest)
    return check_sources([Source(path=path)], tokenizer, longest)


def _tokenizer(model: ModelConfig) -> tuple[Any, int | None]:
    """A tokenizer and its maximum length, or neither: data can be checked without one."""
    try:
        return load_tokenizer(model)
    except UserError as error:
        say(f"token lengths are left out: {error}")
        return None, None


def evaluate(
    model: str,
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str = "test",
    against: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> list[Result]:
    """Score `model`, every model of `against` and BM25 on BEIR folders.

    Each result is written below `out` as JSON with a TREC run file beside it. Returned by task,
    in the order `against`, BM25, `model`. Under `accelerate launch` the processes share the
    encoding, the main one does the rest, and all return the results.
    """
    paths = (*against, model)
    _refuse_twice("models", [name_of(path) for path in paths])
    tasks = [read_task(folder, split) for folder in folders]
    _refuse_twice("tasks", [task.name for task in tasks])
    writable_folder(out)
    encoders = [
        (
            name_of(path),
            load_encoder(ModelConfig(path=path, trust_remote_code=trust_remote_code), "model").to(
                default_device()
            ),
        )
        for path in paths
    ]
    results = []
    for task in tasks:
        found = [evaluate_model(encoder, name, task, out) for name, encoder in encoders]
        lexical = on_main(lambda task=task: evaluate_bm25(task, out))
        results += [*found[:-1], lexical, found[-1]]
    return results


def evaluate_model(
    encoder: SentenceTransformer, name: str, task: RetrievalTask, out: Path
) -> Result:
    """Score one loaded model on one task and write the result. All processes meet here."""
    start = time.perf_counter()
    title = f"{name} on {task.name}"
    queries = vectors(encoder, task.queries.texts, "query", title=f"{title}: queries")
    documents = vectors(encoder, task.documents.texts, "document", title=f"{title}: documents")

    def search_and_score() -> Result:
        run = evaluate_vectors(task, queries, documents)
        result = score_task(
            task,
            run,
            model=name,
            fingerprints={"model": model_fingerprint(encoder)},
            prompts={role: prompt_of(encoder, role) for role in ("query", "document")},
            seconds=time.perf_counter() - start,
        )
        write_run(run, write_result(result, out).with_suffix(".run"), name)
        return result

    return on_main(search_and_score)


def evaluate_bm25(task: RetrievalTask, out: Path) -> Result:
    """The lexical baseline's row."""
    start = time.perf_counter()
    run = bm25_run(task)
    result = score_task(task, run, model=BM25, seconds=time.perf_counter() - start)
    write_run(run, write_result(result, out).with_suffix(".run"), BM25)
    return result


def delta_lines(results: Sequence[Result], model: str) -> list[str]:
    """How `model` differs from every other one on each task, with intervals."""
    lines = []
    for mine in (r for r in results if r.model == model):
        for other in results:
            if other.model != model and (other.task, other.split) == (mine.task, mine.split):
                where = f"{mine.task}: " if len({r.task for r in results}) > 1 else ""
                lines.append(where + delta_line(other.model, model, comparison(other, mine)))
    return lines


def export_run(
    run: Path, out: Path, *, results: Sequence[Result] = (), overwrite: bool = False
) -> float:
    """Export a finished run's best model with a card made of the run's own files.

    Returns the largest difference between its vectors and the checkpoint's.
    """
    try:
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run}: holds no finished run (no readable summary.json)") from None
    config = load(run / "config.yaml")
    name = run.resolve().name
    if results and name not in {result.model for result in results}:
        raise UserError(f"results: none is of {name}; they are of {results[0].model} and others")
    card = model_card(
        config,
        name=name,
        base=name_of(config.model.path),
        data=summary["data"],
        facts=summary["facts"],
        versions=installed_versions(),
        table=markdown_table(model_table(results)) if results else "",
        lines=delta_lines(results, name) if results else (),
        dev=summary["dev"],
    )
    checkpoint = run / "checkpoints" / summary["checkpoint"] / "model"
    return export_model(
        checkpoint,
        out,
        card=card,
        texts=summary["proof_texts"],
        results=[asdict(result) for result in results] or None,
        overwrite=overwrite,
        trust_remote_code=config.model.trust_remote_code,
    )


def export(
    model: str, out: Path, *, results: Sequence[Path] = (), overwrite: bool = False
) -> float:
    """Export a run's folder, or any model folder (its own README is kept as the card).

    results: files or folders written by `evaluate`, for the card of a run.
    """
    run = Path(model)
    if (run / "summary.json").exists():
        return export_run(run, out, results=_read_results(results), overwrite=overwrite)
    card = run / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else f"# {name_of(model)}\n"
    return export_model(model, out, card=text, overwrite=overwrite)


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    """Results are filed by name, so two of one name would overwrite each other."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two {what} are called {twice[0]!r}; rename a folder or evaluate apart")


def name_of(path: str) -> str:
    """What a model is called in tables: its folder, and for `<run>/model` the run."""
    if path == EMBEDDED:
        return "all-MiniLM-L6-v2"
    folder = Path(path).resolve() if Path(path).exists() else Path(path)
    return folder.parent.name if folder.name == "model" else folder.name


def _read_results(paths: Sequence[Path]) -> list[Result]:
    files = [f for p in paths for f in (sorted(p.rglob("*.json")) if p.is_dir() else [p])]
    return [read_result(file) for file in files]


def _dev_evaluator(config: Config) -> Evaluate | None:
    """The in-run evaluation: exact retrieval over the dev folder with the current weights."""
    settings = config.evaluation
    if settings.dev is None:
        return None
    known_metric(settings.metric)
    task = read_task(settings.dev, settings.dev_split)
    how = {"batch_tokens": settings.batch_tokens}

    def scores(encoder: SentenceTransformer) -> dict[str, float]:
        queries = encode(encoder, task.queries.texts, "query", **how, title="dev queries")
        documents = encode(encoder, task.documents.texts, "document", **how, title="dev documents")
        per_query = score_runs(task.qrels, evaluate_vectors(task, queries, documents))
        return {metric: float(values.mean()) for metric, values in per_query.items()}

    return scores


def _summary(trained: Trained) -> dict[str, Any]:
    """What a finished run says of itself; the card is made from it."""
    data, encoder = trained.data, trained.encoder
    step = max(1, len(data.documents) * 2 // PROOF_TEXTS)
    return {
        "checkpoint": trained.best.name,
        "steps": trained.steps,
        "dev": trained.metric,
        "data": {
            "rows": len(data),
            "distinct queries": len(data.queries),
            "distinct documents": len(data.documents),
            "hard negatives": len(data.negatives.values),
            "fingerprint": data.fingerprint,
        },
        "facts": {
            "steps": trained.steps,
            "dimensions": encoder.get_embedding_dimension(),
            "max_length": max_length(encoder),
            "query_prompt": prompt_of(encoder, "query"),
            "document_prompt": prompt_of(encoder, "document"),
        },
        "proof_texts": [*data.queries.texts[::step], *data.documents.texts[::step]],
        "versions": installed_versions(),
    }
