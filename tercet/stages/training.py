"""Train, then export: `finetune` and `distil`."""

from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from tercet.configs import Config, StudentConfig, load
from tercet.data import read_task
from tercet.errors import UserError
from tercet.evaluation import (
    evaluate_vectors,
    installed_versions,
    known_metric,
    score_runs,
)
from tercet.files import write_json
from tercet.models import (
    encode,
    max_length,
    prompt_of,
)
from tercet.processes import on_main
from tercet.progress import is_main_process
from tercet.stages.exporting import export_run
from tercet.stages.mining import remine_stage
from tercet.stages.students import student
from tercet.train import Evaluate, Trained
from tercet.train import finetune as train_model
from tercet.train.output import refuse_other_run
from tercet.train.teacher import resolve_teachers

PROOF_TEXTS = 64  # training texts on which an export is compared with its checkpoint


def finetune(config: Config) -> Path:
    """Train, then export the best model (the last, without a dev set) to `<output>/model`.

    Works under `accelerate launch`; returns the model folder on every process.
    """
    trained = train_model(config, evaluate=_dev_evaluator(config), remine=remine_stage(config))
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
    resolve_teachers(config)
    folder = Path(config.output) / "student"
    body = config.model.model_copy(update={"path": str(folder / "model")})
    trained = config.model_copy(update={"model": body})

    def make() -> None:
        refuse_other_run(trained)
        if _is_made(folder, config) and not config.overwrite:
            return
        if (Path(config.output) / "checkpoints").exists() and not config.overwrite:
            raise UserError(
                f"output: {config.output} holds a run whose student was made of something else "
                "(model, student or data); choose another folder or say overwrite=true"
            )
        student(config.model_copy(update={"output": str(folder), "overwrite": True}))

    on_main(make)
    return finetune(trained)


def _is_made(folder: Path, config: Config) -> bool:
    """Whether the student in `folder` is what `config` asks for; its config is written last."""
    saved = folder / "student.yaml"
    if not saved.exists():
        return False
    found = load(str(saved))
    return (found.model, found.student, found.data, found.train.seed) == (
        config.model,
        config.student,
        config.data,
        config.train.seed,
    )


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
            "similarity": encoder.similarity_fn_name,
            "query_prompt": prompt_of(encoder, "query"),
            "document_prompt": prompt_of(encoder, "document"),
        },
        "proof_texts": [*data.queries.texts[::step], *data.documents.texts[::step]],
        "versions": installed_versions(),
    }
