"""MTEB's own tasks and its own arithmetic: through the package `mteb` (extra `tercet[mteb]`).

`mteb` takes seconds to import and is not always there, so every function imports it by itself.
"""

import difflib
import importlib.util
import json
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet.data.rows import RetrievalTask, Texts
from tercet.errors import UserError
from tercet.evaluation.metrics import Run
from tercet.evaluation.ranking import Ranking, ranking_of
from tercet.evaluation.results import mteb_name
from tercet.evaluation.retrieval import UNKNOWN_LANGUAGE, Result
from tercet.models import Role, prompt_of, vectors

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask, AbsTaskRetrieval

AGREEMENT = 1e-5  # within which mteb's means, which it rounds to 5 digits, are ours
_ROLES: dict[str, Role] = {"query": "query", "document": "document"}  # what mteb calls them


@dataclass(frozen=True)
class Scored:
    """What mteb made of one split and subset of a task."""

    name: str  # of the task, and of its subset unless it has one only
    split: str
    row: dict[str, Any]  # mteb's scores; null for what is not a number
    dataset_revision: str
    mteb_version: str | None
    seconds: float | None
    task: RetrievalTask | None = None  # these two of text retrieval only
    found: Ranking | None = None  # what mteb scored
    skip_self: bool = False  # the documents of the queries' own ids were left out
    searched: bool = False  # among all documents; False where mteb gives candidates to be ordered


def require_mteb() -> None:
    """Raise UserError unless the package is installed."""
    if importlib.util.find_spec("mteb") is None:
        raise UserError("--mteb needs its package: pip install 'tercet[mteb]'")


def official_task(name: str) -> "AbsTask":
    """MTEB's task of this name. Raises UserError naming the nearest if there is none."""
    require_mteb()
    import mteb

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mteb.get_task(name)
    except KeyError:
        names = {task.metadata.name.lower(): task.metadata.name for task in mteb.get_tasks()}
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"; did you mean {names[near[0]]!r}?" if near else ""
        raise UserError(f"--mteb: MTEB has no task {name!r}{hint}") from None


def parts_of(task: "AbsTask") -> list[tuple[str, str]]:
    """Name and split of every result that `run_mteb` gives of the task."""
    subsets, splits = task.hf_subsets, task.eval_splits
    return [(_part_name(task, subset), split) for subset in subsets for split in splits]


def as_mteb_task(task: RetrievalTask, *, skip_self: bool = False) -> "AbsTaskRetrieval":
    """A task of ours as one of mteb's, to be run by `mteb.evaluate`."""
    require_mteb()
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=task.name,
            description=f"BEIR folder {task.name}",
            dataset={"path": task.name, "revision": "local"},
            type="Retrieval",
            category="t2t",
            eval_splits=[task.split],
            eval_langs=[*UNKNOWN_LANGUAGE],
            main_score="ndcg_at_10",
        )
        ignore_identical_ids = skip_self

        def load_data(self, *_: Any, **__: Any) -> None:
            documents, queries = task.documents, task.queries
            corpus = {"id": documents.ids, "title": [""] * len(documents), "text": documents.texts}
            self.dataset = {
                "default": {
                    task.split: {
                        "corpus": Dataset.from_dict(corpus),
                        "queries": Dataset.from_dict({"id": queries.ids, "text": queries.texts}),
                        "relevant_docs": task.qrels,
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return Local()


def run_mteb(model: Any, task: "AbsTask") -> list[Scored]:
    """Everything `mteb.evaluate` says of `model` (what it takes) on one task, split by split.

    Raises UserError if the data cannot be had, or the model and the task do not fit.
    """
    require_mteb()
    import mteb
    from mteb.abstasks import AbsTaskRetrieval

    name = task.metadata.name
    told = f"--mteb {name}: mteb cannot run it"
    retrieval = task if isinstance(task, AbsTaskRetrieval) else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            if retrieval is not None:
                retrieval.load_data()  # so that mteb does not forget it
            report = mteb.evaluate(
                model,
                task,
                cache=None,
                co2_tracker=False,
                overwrite_strategy="always",
                prediction_folder=folder,
                show_progress_bar=False,
            )
        except (OSError, ValueError, RuntimeError, LookupError, ImportError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{told}: {reason}") from None
        if not report.task_results:
            reasons = [" ".join(one.exception.split()) for one in report.exceptions or ()]
            raise UserError(f"{told}: {next(iter(reasons), 'it gives no result')}")
        said = Path(folder) / f"{name}_predictions.json"
        runs = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {}
    result = report.task_results[0]
    of_texts = retrieval is not None and set(task.metadata.modalities) == {"text"}
    found = []
    for split, rows in result.scores.items():
        for row in rows:
            subset = row["hf_subset"]
            one = Scored(
                _part_name(task, subset),
                split,
                _without_nan(dict(row)),
                result.dataset_revision,
                result.mteb_version,
                result.evaluation_time,
            )
            if retrieval is not None and of_texts:
                one = _with_ranking(one, retrieval, subset, runs.get(subset, {}).get(split, {}))
            found.append(one)
    return found


def _part_name(task: "AbsTask", subset: str) -> str:
    name = task.metadata.name
    return name if subset == "default" else f"{name}.{subset}"


def _with_ranking(one: Scored, task: "AbsTaskRetrieval", subset: str, run: Run) -> Scored:
    """With what was found: mteb keeps it as it was before it leaves documents out."""
    task.convert_v1_dataset_format_to_v2(None)
    ours = _task_of(task, one.name, one.split, subset)
    if task.ignore_identical_ids:
        for query, documents in run.items():
            documents.pop(query, None)
    if task.skip_first_result:
        best = {query: sorted(docs, key=docs.__getitem__)[-1:] for query, docs in run.items()}
        run = {q: {d: s for d, s in docs.items() if d not in best[q]} for q, docs in run.items()}
    return replace(
        one,
        task=ours,
        found=ranking_of(ours, run),
        skip_self=task.ignore_identical_ids,
        searched=task.dataset[subset][one.split]["top_ranked"] is None
        and not task.skip_first_result,
    )


def by_mteb(row: Mapping[str, Any], metrics: Iterable[str], depth: int) -> dict[str, float]:
    """mteb's own means of those of our `metrics` that it has: metric -> mean.

    `depth`: how many documents of a query we look at.
    """
    names = {metric: mteb_name(metric, depth) for metric in metrics}
    return {m: row[name] for m, name in names.items() if name and row.get(name) is not None}


def disagreement(result: Result) -> tuple[float, str]:
    """The largest difference between mteb's means and ours, and the metric it is of."""
    theirs = result.by_mteb or {}
    return max(
        ((abs(mean - result.means[metric].mean), metric) for metric, mean in theirs.items()),
        default=(0.0, result.main),
    )


def _task_of(task: "AbsTaskRetrieval", name: str, split: str, subset: str) -> RetrievalTask:
    """What mteb has loaded, as a task of ours."""
    data = task.dataset[subset][split]
    corpus, queries, qrels = data["corpus"], data["queries"], data["relevant_docs"]
    columns = [list(corpus[c]) for c in ("title", "text") if c in corpus.column_names]
    texts = [" ".join(part or "" for part in parts).strip() for parts in zip(*columns, strict=True)]
    asked = [i for i, query in enumerate(queries["id"]) if qrels.get(query)]
    return RetrievalTask(
        name,
        split,
        Texts(list(corpus["id"]), texts),
        Texts([queries["id"][i] for i in asked], [str(queries["text"][i]) for i in asked]),
        {queries["id"][i]: dict(qrels[queries["id"][i]]) for i in asked},
        unjudged=len(queries) - len(asked),
    )


def stored_encoder(encoder: SentenceTransformer) -> Any:
    """The encoder as mteb takes it, its queries and documents read from the store of vectors.

    Where mteb puts a prompt of its own before the texts, they are encoded as it does.
    """
    require_mteb()
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    class Stored(SentenceTransformerEncoderWrapper):
        def encode(
            self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **how: Any
        ) -> NDArray[np.float32]:
            name = self.get_prompt_name(task_metadata, prompt_type)
            prompt = (self.model_prompts or {}).get(name) if name else None
            role: Role | None = _ROLES.get(getattr(prompt_type, "value", ""))
            if role is not None and prompt in (None, prompt_of(encoder, role)):
                texts = [text for batch in inputs for text in batch["text"]]
                return vectors(encoder, texts, role, title=f"{task_metadata.name}: {role}")[:]
            how |= {"task_metadata": task_metadata, "prompt_type": prompt_type}
            return super().encode(inputs, **how)  # type: ignore[return-value]

    return Stored(encoder)


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """No JSON reader takes NaN; mteb's confidence measures have some."""

    def clean() -> Iterator[tuple[str, Any]]:
        for key, value in row.items():
            number = isinstance(value, float | np.floating)
            bad = number and not math.isfinite(value)
            yield key, None if bad else float(value) if number else value

    return dict(clean())
