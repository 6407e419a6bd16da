"""MTEB's own tasks and its own arithmetic: through the package `mteb` (extra `tercet[mteb]`).

`mteb` takes seconds to import and is not always there, so every function imports it by itself.
"""

import difflib
import importlib.util
import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet.data.rows import RetrievalTask, Texts
from tercet.errors import UserError
from tercet.evaluation.metrics import Run
from tercet.models import Role, prompt_of, vectors

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask, AbsTaskRetrieval

LANGUAGE = "und-Zyyy"  # ISO's codes for an unknown language and script
_ROLES: dict[str, Role] = {"query": "query", "document": "document"}  # what mteb calls them


@dataclass(frozen=True)
class Scored:
    """What mteb made of one split and subset of a task."""

    task: RetrievalTask | None  # with the run below: of retrieval tasks only
    run: Run
    name: str  # of the task, and of its subset unless it has one only
    split: str
    row: dict[str, Any]  # mteb's scores; null for what is not a number
    dataset_revision: str
    mteb_version: str | None
    seconds: float | None


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
            eval_langs=[LANGUAGE],
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

    Raises UserError if the data cannot be had.
    """
    require_mteb()
    import mteb
    from mteb.abstasks import AbsTaskRetrieval

    name = task.metadata.name
    retrieval = task if isinstance(task, AbsTaskRetrieval) else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            if retrieval is not None:
                retrieval.load_data()
            found = mteb.evaluate(
                model,
                task,
                cache=None,
                co2_tracker=False,
                overwrite_strategy="always",
                prediction_folder=folder,
                show_progress_bar=False,
            ).task_results[0]
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"--mteb {name}: mteb cannot run it: {reason}") from None
        said = Path(folder) / f"{name}_predictions.json"
        runs = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {}
    rows = [(split, row) for split, part in found.scores.items() for row in part]
    return [
        Scored(
            _task_of(retrieval, name, split, row["hf_subset"]) if retrieval else None,
            runs.get(row["hf_subset"], {}).get(split, {}),
            name if row["hf_subset"] == "default" else f"{name}.{row['hf_subset']}",
            split,
            _without_nan(dict(row)),
            found.dataset_revision,
            found.mteb_version,
            found.evaluation_time,
        )
        for split, row in rows
    ]


def _task_of(task: "AbsTaskRetrieval", name: str, split: str, subset: str) -> RetrievalTask:
    """What mteb has loaded, as a task of ours."""
    task.convert_v1_dataset_format_to_v2(None)
    data = task.dataset[subset][split]
    corpus, queries, qrels = data["corpus"], data["queries"], data["relevant_docs"]
    columns = [list(corpus[c]) for c in ("title", "text") if c in corpus.column_names]
    texts = [" ".join(part or "" for part in parts).strip() for parts in zip(*columns, strict=True)]
    asked = [i for i, query in enumerate(queries["id"]) if qrels.get(query)]
    return RetrievalTask(
        name if subset == "default" else f"{name}.{subset}",
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
