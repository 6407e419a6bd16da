"""Train, then export: `finetune` and `distil`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sentence_transformers import SentenceTransformer

from tercet.configs import Config, DistilConfig, ModelConfig, StudentConfig, load
from tercet.data import read_task
from tercet.errors import UserError, about
from tercet.evaluation import cut_of, known_metric
from tercet.files import cache_folder, disk_errors, writable_folder, write_json
from tercet.models import max_length, prompt_of
from tercet.peers import together
from tercet.processes import on_main
from tercet.progress import is_main_process, say
from tercet.report import size_line
from tercet.stages.exporting import export_run
from tercet.stages.measuring import DEV_DEPTH, scores_of
from tercet.stages.mining import remine_stage
from tercet.stages.students import write_student
from tercet.train import Evaluate, Trained
from tercet.train import finetune as train_model
from tercet.train.checkpoint import verify
from tercet.train.frozen import refuse_absent
from tercet.train.output import one_run_in, refuse_other_run
from tercet.train.resuming import is_finished
from tercet.versions import installed_versions

TRAINED = "the checkpoints are whole: mend that, and the same command goes on"
PROOF_TEXTS = 64  # training texts on which an export is compared with its checkpoint


def finetune(config: Config, allow_changed: Sequence[str] = ()) -> Path:
    """Train, then export the best model (the last, without a dev set) to `<output>/model`.

    Works under `accelerate launch`; returns the model folder on every process, at once if this very
    config has been run there to the end before. `allow_changed`: what may differ from an unfinished
    run that is gone on with (`tercet.train.finetune`).
    """
    if config.student != StudentConfig():
        raise UserError(
            "student: finetune trains model.path as it is; cut it with `tercet student` first, or "
            "let a teacher train what is cut: `tercet distil`"
        )
    if not config.distil.active and config.distil != DistilConfig():
        say("warning: distil.teacher is not set, so nothing of the section distil is learnt")
    return _unless_finished(config, partial(_train, config, allow_changed))


def _unless_finished(config: Config, work: Callable[[], Path]) -> Path:
    """The model folder that `work` makes alone in the output folder, or that it has made before.

    So that whatever repeats a command until it succeeds, comes to an end.
    """
    folder = Path(config.output)
    with one_run_in(folder):
        if on_main(lambda: is_finished(config)):
            say(f"output: {folder} holds this run, finished; overwrite=true trains it anew")
            return folder / "model"
        return work()


def _train(
    config: Config, allow_changed: Sequence[str], student: ModelConfig | None = None
) -> Path:
    trained = train_model(
        config,
        evaluate=_dev_evaluator(config),
        remine=remine_stage(config),
        allow_changed=allow_changed,
        student=student,
    )
    run = Path(config.output)
    if is_main_process():
        with disk_errors(run / "summary.json", TRAINED):
            write_json(run / "summary.json", _summary(trained))
        if trained.metric is not None:
            kept = f"step {_step_of(trained.best)} of {trained.steps}"
            say(f"best: {kept}, dev {config.evaluation.metric} {trained.metric:.3f}")
        export_run(run, run / "model", checkpoint=_instead_of_best(trained))
    return run / "model"


def _instead_of_best(trained: Trained) -> Path | None:
    """The last checkpoint if the best one was damaged since it was written; None if it was not.

    `tercet export` refuses a damaged one; here the same command would be refused for ever.
    """
    damage = verify(trained.best)
    if damage is None:
        return None
    say(f"{trained.best}: {damage}; exporting the last one, {trained.last.name}, in its place")
    return trained.last


def distil(config: Config, allow_changed: Sequence[str] = ()) -> Path:
    """Train a student on what `config.distil` names, then export it as `finetune` does.

    If `config.student` cuts anything, the student is first made of `config.model`, in
    `<output>/student`; otherwise `config.model` itself is trained. The run's config.yaml is what
    was asked for, so it can be run again elsewhere.
    """
    if not config.distil.active:
        raise UserError(
            "distil.teacher is missing: name the model to learn from, or learn the scores in the "
            "rows or in data.mined (distil.scores=data)"
        )

    def work() -> Path:
        return _train(config, allow_changed, _student(config, allow_changed))

    return _unless_finished(config, work)


def _student(config: Config, allow_changed: Sequence[str]) -> ModelConfig | None:
    """Make what `config.student` cuts out of `config.model`, unless it is there; how to load it."""
    if config.student == StudentConfig():
        return None
    folder = Path(config.output) / "student"

    def make() -> None:
        refuse_absent(config)
        refuse_other_run(config, allow_changed)
        if _is_made(folder, config) and not config.overwrite:
            return
        if (Path(config.output) / "checkpoints").exists() and not config.overwrite:
            raise UserError(
                f"output: {config.output} holds a run whose student was made of something else "
                "(model, student or data); choose another folder or say overwrite=true"
            )
        made = write_student(config.model_copy(update={"output": str(folder), "overwrite": True}))
        say(f"student: {size_line(made.before, made.after)}")

    with together():
        on_main(make)
    return made_student(config, folder / "model")


@contextmanager
def with_student(config: Config) -> Iterator[Config]:
    """`config` with its student made, in a folder that goes after the block: for `tercet plan`.

    The main process makes it in the cache, which all processes see.
    """
    if config.student == StudentConfig():
        yield config
        return
    with ExitStack() as leaving:

        def make() -> Path:
            place = writable_folder(cache_folder())
            folder = leaving.enter_context(TemporaryDirectory(prefix="student-", dir=place))
            write_student(config.model_copy(update={"output": folder, "overwrite": True}))
            return Path(folder) / "model"

        with together():
            path = on_main(make)
        yield config.model_copy(update={"model": made_student(config, path)})


def made_student(config: Config, path: Path) -> ModelConfig:
    """How to load what was made of `config.model`, whose other settings it holds already.

    Maximum length, pooling, prompts and normalisation were applied before it was cut; a static
    student or one from scratch has none of them any more.
    """
    return ModelConfig(
        path=str(path),
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
    )


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
    with about("evaluation.dev"):
        task = read_task(settings.dev, settings.dev_split)
    depth = max(DEV_DEPTH, cut_of(settings.metric))

    def scores(encoder: SentenceTransformer) -> dict[str, float]:
        per_query = scores_of(encoder, task, settings.batch_tokens, depth)
        return {metric: float(values.mean()) for metric, values in per_query.items()}

    return scores


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _summary(trained: Trained) -> dict[str, Any]:
    """What a finished run says of itself; the card is made from it."""
    data, encoder = trained.data, trained.encoder
    step = max(1, len(data.documents) * 2 // PROOF_TEXTS)
    return {
        "checkpoint": trained.best.name,
        "steps": trained.steps,
        "dev": trained.metric,
        "begun": trained.begun,
        "data": {
            "rows": len(data),
            "distinct queries": len(data.queries),
            "distinct documents": len(data.documents),
            "hard negatives": len(data.negatives.values),
            "fingerprint": data.fingerprint,
        },
        "facts": {
            "steps": trained.steps,
            "kept_step": None if trained.metric is None else _step_of(trained.best),
            "dimensions": encoder.get_embedding_dimension(),
            "max_length": max_length(encoder),
            "similarity": encoder.similarity_fn_name,
            "query_prompt": prompt_of(encoder, "query"),
            "document_prompt": prompt_of(encoder, "document"),
        },
        "proof_texts": [*data.queries.texts[::step], *data.documents.texts[::step]],
        "versions": installed_versions(),
    }
