"""Mine hard negatives, before a run or inside it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers import SentenceTransformer

from tercet.cache import OUTPUT
from tercet.configs import Config, ModelConfig, RescoreConfig, save
from tercet.data import TrainingSet, read_training
from tercet.data.rows import Indices
from tercet.errors import UserError, about, did_you_mean
from tercet.files import disk_errors, fingerprint, write_text
from tercet.mining import BM25 as LEXICAL
from tercet.mining import MODEL, Asked, MinedCounts, Space, asked_queries, searchable
from tercet.mining import mine as mine_asked
from tercet.mining.ann import import_faiss
from tercet.mining.candidates import Picked
from tercet.mining.stage import SUMMARY
from tercet.models import (
    default_device,
    load_encoder,
    max_length,
    model_fingerprint,
    on_disk,
    prompt_of,
    resolve,
    vectors,
)
from tercet.models.cross import CrossScorer, load_scorer
from tercet.peers import together
from tercet.processes import on_main, share_mistakes
from tercet.progress import say
from tercet.report import mining_page
from tercet.train.output import asks_for, one_run_in, refuse_own_recipe
from tercet.train.precision import own_forward
from tercet.train.remine import Remine
from tercet.train.rows import held_out_tasks
from tercet.versions import installed_versions

MINED, PAGE, RECIPE = "mined.parquet", "mining.html", "mine.yaml"


@dataclass(frozen=True)
class Mined:
    """A finished mining stage: the file to name as data.mined, and what became of candidates."""

    path: Path
    counts: MinedCounts
    page: Path  # to read


@together()
def mine(config: Config) -> Mined:
    """Mine hard negatives for `config.data.train` with `config.model`.

    Writes `<output>/mined.parquet`, `mining.json`, the page `mining.html` and the resolved config
    as `mine.yaml`. Works under `accelerate launch`; returns the same on every process. The same
    config in the same folder, killed or finished, pays only for what is in no cache yet.
    """
    folder = Path(config.output)
    with one_run_in(folder):
        on_main(lambda: _refuse_other_set(config))
        return _mine(config, folder / MINED)


def _refuse_other_set(config: Config) -> None:
    """Raise UserError if the output folder holds another config's set, not to be overwritten.

    Likewise if the resolved config would replace a recipe that somebody wrote.
    """
    folder = Path(config.output)
    path = folder / MINED
    refuse_own_recipe(folder / RECIPE)
    if path.exists() and not config.overwrite and not asks_for(folder / RECIPE, config):
        raise UserError(f"output: {path} exists; choose another folder or say overwrite=true")


def _mine(config: Config, path: Path) -> Mined:
    with share_mistakes():
        models = _mining_models(config)
        scorer = _scorer(config.mining.rescore)
        if not config.data.train:
            raise UserError("data.train is missing: name a file of pairs or a BEIR folder")
        rows = read_training(config.data.train)
        asked = _asked(config, rows)
    spaces, facts = {}, {}
    for source, settings in models.items():
        where = "model.path" if source == MODEL else "mining.sources"
        encoder = load_encoder(settings, where, fetch=source == MODEL).to(default_device())
        spaces[source] = space_of(encoder, asked)
        facts[source] = _facts(settings, encoder)
    made_by = _made_by(rows, facts)
    how = {"miner": facts[MODEL]["fingerprint"], "scorer": scorer, "made_by": made_by}
    on_main(lambda: _begin(config, path.parent))
    counts = mine_asked(asked, spaces, config.mining, path, **how)
    on_main(lambda: _write_page(path))
    return Mined(path, counts, path.with_name(PAGE))


def _begin(config: Config, folder: Path) -> None:
    """Say whose set the folder is to hold. The page, which ends the work, is of an earlier one."""
    with disk_errors(folder / RECIPE, OUTPUT):
        (folder / PAGE).unlink(missing_ok=True)
        save(config, folder / RECIPE)


def remine_stage(config: Config) -> Remine | None:
    """What mines anew inside a run with the model as it is then; None if the run never does.

    The mined set, `mining.json` and the page of each round stay in a folder of their own, its
    vectors and candidate lists do not; a cross-encoder's scores are kept for the next rounds. What
    does not change with the weights is prepared once, in the first round.
    """
    if config.mining.refresh_every is None:
        return None
    if config.mining.too_few == "drop":
        raise UserError(
            "mining.too_few: drop would change the order of a run that mines as it goes; "
            "use keep or fill"
        )
    models = _mining_models(config)
    scorer = _scorer(config.mining.rescore)
    cache = Path(config.output) / "mined" / "cache"
    first: list[_Prepared] = []

    def remine(
        encoder: SentenceTransformer,
        rows: TrainingSet,
        queries: Indices,
        out: Path,
        round_number: int,
    ) -> None:
        if not first:
            first.append(_prepared(config, rows, models))
        prepared = first[0]
        asked = prepared.asked.only(queries)
        with own_forward(encoder):
            spaces = {MODEL: space_of(encoder, asked, cache / "vectors")}
        at = np.searchsorted(prepared.asked.queries, queries)
        spaces |= {name: _queries_of(space, at) for name, space in prepared.spaces.items()}
        facts = {MODEL: _facts(config.model, encoder)} | prepared.facts
        how = {"scorer": scorer, "round_number": round_number, "cache": cache}
        how |= {"miner": facts[MODEL]["fingerprint"], "made_by": _made_by(rows, facts)}
        mine_asked(asked, spaces, config.mining, out, **how)

        def clear() -> None:
            _write_page(out)
            for folder in ("vectors", "candidates"):
                shutil.rmtree(cache / folder, ignore_errors=True)

        on_main(clear)

    return remine


class _Prepared(NamedTuple):
    """What all rounds of mining inside a run share."""

    asked: Asked  # all queries
    spaces: dict[str, Space]  # of the other models, for all queries
    facts: dict[str, dict[str, Any]]  # about them


def _prepared(config: Config, rows: TrainingSet, models: Mapping[str, ModelConfig]) -> _Prepared:
    with share_mistakes():
        asked = _asked(config, rows)
    spaces, facts = {}, {}
    for source, settings in models.items():
        if source != MODEL:
            other = load_encoder(settings, "mining.sources", fetch=False).to(default_device())
            spaces[source], facts[source] = space_of(other, asked), _facts(settings, other)
    return _Prepared(asked, spaces, facts)


def _queries_of(space: Space, queries: Indices) -> Space:
    """The space of some of its queries alone."""
    key = fingerprint([space.fingerprint, queries.tobytes()])
    return Space(Picked(space.queries, queries), space.documents, key)


def _asked(config: Config, rows: TrainingSet) -> Asked:
    """What mining has to know of the training data, without what must stay unseen."""
    with about("mining.known"):
        known = [read_training([source]) for source in config.mining.known]
    if rows.extra:  # texts of data.corpus: nobody knows whom they answer
        rows = rows.with_only(np.arange(len(rows.documents) - rows.extra))
    unseen = {} if config.mining.held_out else held_out_tasks(config, all_splits=True)
    held_out = [task for tasks in unseen.values() for task in tasks]
    return asked_queries(rows, known, searchable(rows, held_out))


def _facts(settings: ModelConfig, encoder: SentenceTransformer) -> dict[str, Any]:
    """What shaped a model's vectors, for the record."""
    prompts = {role: prompt_of(encoder, role) for role in ("query", "document")}
    return {
        "path": settings.path,
        "fingerprint": model_fingerprint(encoder),
        "prompts": prompts,
        "max_length": max_length(encoder),
        "dtype": settings.dtype,
    }


def _made_by(rows: TrainingSet, models: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": rows.fingerprint, "models": dict(models), "versions": installed_versions()}


def _write_page(mined: Path) -> None:
    """The page beside a mined set, out of its `mining.json`."""
    found = json.loads(mined.with_name(SUMMARY).read_text(encoding="utf-8"))
    with disk_errors(mined.with_name(PAGE), OUTPUT):
        write_text(mined.with_name(PAGE), mining_page(found))


def _mining_models(config: Config) -> dict[str, ModelConfig]:
    """The models whose vectors mining needs, by source, the one that scores first."""
    models = {MODEL: config.model}
    for source in config.mining.sources:
        if isinstance(source, ModelConfig):
            models[source.path] = source
        elif source not in (MODEL, LEXICAL):
            _refuse_misspelt(source)
            models[source] = ModelConfig(path=source)
    if config.mining.index != "exact":
        import_faiss(
            f"mining.index: {config.mining.index!r}"
        )  # its absence should not wait for the texts to be encoded
    for source, settings in models.items():
        if source == MODEL:
            resolve(settings.path)
        else:
            on_disk(settings.path, "mining.sources")
    return models


def _refuse_misspelt(source: str) -> None:
    """Raise UserError for what is nearly the name of a source that is no other model."""
    hint = did_you_mean(source.lower(), (MODEL, LEXICAL), "", cutoff=0.7)
    if hint and not Path(source).exists():
        raise UserError(f"mining.sources: there is no {source!r}; {hint}")


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


def space_of(encoder: SentenceTransformer, asked: Asked, folder: Path | None = None) -> Space:
    """Vectors of the asked queries and of the documents, from the store where they are there.

    Documents are encoded in the order they were read in, so that guides find them in the store.
    """
    queries = vectors(encoder, asked.texts, "query", folder=folder, title="encode queries")
    read = vectors(encoder, asked.read.texts, "document", folder=folder, title="encode documents")
    key = fingerprint([queries.fingerprint, read.fingerprint, asked.taken.tobytes()])
    in_order = np.array_equal(asked.taken, np.arange(len(read)))
    return Space(queries, read if in_order else Picked(read, asked.taken), key)
