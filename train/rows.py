"""What a run reads: rows, the order of its batches, cached tokens, and what must stay unseen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import Config, DataConfig
from tercet.data import TrainingSet, read_corpus, read_training, with_mined
from tercet.data.batch import Batches, TextBatches
from tercet.data.beir import read_tasks, splits
from tercet.data.check import overlap
from tercet.data.order import BLOCK, Order
from tercet.data.rows import Indices, RetrievalTask
from tercet.data.tokens import TokenCache, token_cache
from tercet.errors import UserError, about
from tercet.files import fingerprint
from tercet.losses import check_scores
from tercet.models import Role, max_length, prompt_of, tokenise
from tercet.models.store import tokenizer_fingerprint
from tercet.progress import say


def read_rows(config: DataConfig) -> TrainingSet:
    """The training rows as they are on disk, with no negatives but their own.

    The texts of `config.corpus` join the documents, those of `config.queries` the queries; they
    belong to no row.
    """
    if not config.train and not config.corpus and not config.queries:
        raise UserError("data.train is missing: name a file of pairs or a BEIR folder")
    rows = read_training(config.train) if config.train else TrainingSet.empty()
    documents = read_corpus(config.corpus) if config.corpus else ()
    queries = read_corpus(config.queries, "queries") if config.queries else ()
    return rows.with_texts(queries, documents) if queries or documents else rows


def read_data(config: Config) -> tuple[TrainingSet, TrainingSet]:
    """The rows of `read_rows`, and the same with the mined negatives that the config names.

    Raises UserError for settings that these rows cannot serve.
    """
    rows = read_rows(config.data)
    if config.distil.needs_pairs and len(rows) == 0:
        raise UserError("data.train is missing: only distillation by vectors does without pairs")
    data = rows if config.data.mined is None else with_mined(rows, config.data.mined)
    _refuse_what_cannot_work(config, rows, data)
    return rows, data


def _refuse_what_cannot_work(config: Config, rows: TrainingSet, data: TrainingSet) -> None:
    """Raise UserError for settings that these rows cannot serve."""
    distil, every = config.distil, config.mining.refresh_every
    sources = len(data.source_offsets) - 1
    if distil.needs_pairs and sources > BLOCK:
        raise UserError(
            f"data.train: {sources} sources; at most {BLOCK} can be drawn from in turns, so put "
            "small ones into one file"
        )
    contrast = not distil.active or bool(distil.infonce)
    unmined = every is None and len(data.negatives.values) == 0
    alone = unmined or config.data.negatives_per_row == 0
    if alone and contrast and not config.loss.in_batch_negatives:
        raise UserError(
            "loss.in_batch_negatives: false leaves no negatives, for the rows have none of their "
            "own; mine some (data.mined) or name a column of them"
        )
    if alone and distil.active and (distil.listwise_kl or distil.margin_mse):
        raise UserError(
            "distil.listwise_kl and distil.margin_mse compare a row's positives with its "
            "negatives, and the rows have none; mine some (data.mined) or name a column of them"
        )
    if distil.scores == "data" and every is not None and config.mining.rescore.model is None:
        raise UserError(
            "distil.scores: data, but mining.refresh_every finds pairs without a score; name a "
            "cross-encoder (mining.rescore.model)"
        )
    if distil.scores == "data" and every is None:
        refuse_unscored(data)
    if every is not None and not distil.needs_pairs:
        raise UserError("mining.refresh_every: this run draws single texts and uses no negatives")
    if every is not None and (data.positives is not rows.positives or len(data) != len(rows)):
        raise UserError(
            "mining.refresh_every: data.mined drops or relabels rows, which mining anew would "
            "undo; leave one of the two out"
        )


def steps_of(config: Config, batches: Batches | TextBatches) -> int:
    """How many steps the run has."""
    return config.train.steps or round(config.train.epochs * batches.order.steps_per_epoch) or 1


def batches_of(config: Config, data: TrainingSet) -> Batches | TextBatches:
    """Every batch of the run, as a function of the step: of rows, or of texts if those suffice."""
    if not config.distil.needs_pairs:
        return TextBatches(data, config.batch.size, config.train.seed)
    sizes = tuple(int(n) for n in data.source_offsets[1:] - data.source_offsets[:-1])
    order = Order(sizes, config.batch.size, config.train.seed, config.data.source_alpha)
    return Batches(
        data,
        order,
        positives_per_row=config.data.positives_per_row,
        negatives_per_row=config.data.negatives_per_row,
        known=config.loss.false_negatives.known,
    )


def refuse_unscored(data: TrainingSet, rows: Indices | None = None) -> None:
    """Raise UserError unless the scores that came with the data can teach.

    Every row's query (of `rows`; None: all) needs one with each of its positives and own negatives,
    and for some query they must differ.
    """
    rows = np.arange(len(data)) if rows is None else rows
    owners, documents = (
        np.concatenate(part)
        for part in zip(data.positives.take(rows), data.negatives.take(rows), strict=True)
    )
    queries = data.row_query[owners]
    table = data.score_table
    if table is None:
        raise UserError(
            "distil.scores: data, and the data holds none; mine with a cross-encoder "
            "(mining.rescore.model) and set data.mined, or name columns.positive_score and "
            "columns.negative_score of data.train"
        )
    same = data.queries.identical[queries], data.documents.identical[documents]
    found = table.of(*same)
    lacking = np.flatnonzero(np.isnan(found))
    if len(lacking):
        query, document = (
            texts.texts[places[lacking[0]]][:60]
            for texts, places in ((data.queries, queries), (data.documents, documents))
        )
        raise UserError(
            f"distil.scores: {len(lacking)} of {len(found)} pairs have no score, the first "
            f"{query!r} with {document!r}; score them too, or leave those negatives out"
        )
    try:
        check_scores(torch.from_numpy(found), torch.from_numpy(same[0]))
    except ValueError as mistake:
        raise UserError(f"distil.scores: {mistake}") from None


def tokens_of(encoder: SentenceTransformer, texts: Sequence[str], role: Role) -> TokenCache:
    """The token cache of `texts` as this model reads them in this role."""
    key = [tokenizer_fingerprint(encoder.tokenizer), prompt_of(encoder, role)]
    return token_cache(
        texts,
        lambda chunk: tokenise(encoder, chunk, role),
        fingerprint([*key, str(max_length(encoder))]),
    )


def held_out_tasks(config: Config, *, all_splits: bool = False) -> dict[str, list[RetrievalTask]]:
    """By config key, what must stay unseen: the test splits of data.held_out, and the dev set.

    With `all_splits` also, under mining.held_out, every other split of those folders but train.
    """
    wanted = [("data.held_out", folder, "test") for folder in config.data.held_out]
    if (dev := config.evaluation.dev) is not None:
        wanted.append(("evaluation.dev", dev, config.evaluation.dev_split))
    tasks: dict[str, list[RetrievalTask]] = {"mining.held_out": []}
    for key, folder, split in wanted:
        others = [s for s in splits(Path(folder)) if s not in (split, "train")]
        with about(key):
            task, *more = read_tasks(folder, [split, *others] if all_splits else [split])
        tasks.setdefault(key, []).append(task)
        tasks["mining.held_out"] += more
    return tasks


def data_beside(config: Config, data: TrainingSet) -> dict[str, list[str]]:
    """Look for held-out texts in training; by key, fingerprints of data besides the rows.

    Only of what steers the run. The dev set chooses the best step; a run that mines as it goes
    takes nothing for a negative that is known or held out, and its ties and draws are by id.
    """
    mines = config.mining.refresh_every is not None
    unseen = mines and not config.mining.held_out
    tasks = held_out_tasks(config, all_splits=unseen)
    looked_for = [t for key, some in tasks.items() if key != "mining.held_out" for t in some]
    _warn_of_overlap(config, data, looked_for)
    steers = tasks if unseen else {"evaluation.dev": tasks.get("evaluation.dev", [])}
    found = {key: [task.fingerprint for task in some] for key, some in steers.items()}
    if mines:
        with about("mining.known"):
            known = [read_training([source]) for source in config.mining.known]
        found["mining.known"] = [rows.fingerprint for rows in known]
        known_too = (f"{query} {document}" for query, document in data.elsewhere)
        sides = data.queries.ids, data.documents.ids, known_too  # no batch depends on them
        found["data.train"] = [fingerprint(side) for side in sides]
    return {key: values for key, values in found.items() if values}


def _warn_of_overlap(config: Config, data: TrainingSet, tasks: Sequence[RetrievalTask]) -> None:
    for task in tasks:
        found = overlap(data, task)
        if found.share > config.data.max_overlap:
            say(
                f"warning: training holds {found.queries} of {found.of_queries} queries and "
                f"{found.documents} of {found.of_documents} answers of {found.task}: "
                "scores on it will look too good"
            )
