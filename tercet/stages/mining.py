"""Mine hard negatives, before a run or inside it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from tercet.configs import Config, ModelConfig, RescoreConfig, save
from tercet.data import TrainingSet, read_training
from tercet.data.rows import Indices
from tercet.errors import UserError, about
from tercet.files import fingerprint, writable_folder, write_text
from tercet.mining import BM25 as LEXICAL
from tercet.mining import MODEL, Asked, MinedCounts, Space, asked_queries
from tercet.mining import mine as mine_asked
from tercet.mining.ann import import_faiss
from tercet.mining.stage import SUMMARY
from tercet.models import (
    default_device,
    load_encoder,
    model_fingerprint,
    on_disk,
    resolve,
    vectors,
)
from tercet.models.cross import CrossScorer, load_scorer
from tercet.peers import together
from tercet.processes import on_main, share_mistakes
from tercet.progress import say
from tercet.report import mining_page
from tercet.train.remine import Remine
from tercet.train.rows import held_out_tasks

MINED = "mined.parquet"


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
        where = "model.path" if source == MODEL else "mining.sources"
        encoder = load_encoder(settings, where, fetch=source == MODEL).to(default_device())
        spaces[source] = space_of(encoder, asked)
        miner = miner or model_fingerprint(encoder)
    counts = mine_asked(asked, spaces, config.mining, path, miner=miner, scorer=scorer)

    def write() -> None:
        save(config, folder / "mine.yaml")
        write_text(page, mining_page(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))))

    on_main(write)
    return Mined(path, counts, page)


def remine_stage(config: Config) -> Remine | None:
    """What mines anew inside a run with the model as it is then; None if the run never does.

    The mined set and `mining.json` of each round stay in a folder of their own, its vectors and
    candidate lists do not; a cross-encoder's scores are kept for the next rounds.
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

    def remine(
        encoder: SentenceTransformer,
        rows: TrainingSet,
        queries: Indices,
        out: Path,
        round_number: int,
    ) -> None:
        asked = _asked(config, rows).only(queries)
        spaces = {MODEL: space_of(encoder, asked, cache / "vectors")}
        for source, settings in models.items():
            if source != MODEL:
                other = load_encoder(settings, "mining.sources", fetch=False)
                other = other.to(default_device())
                spaces[source] = space_of(other, asked)
        miner = model_fingerprint(encoder)
        how = {"miner": miner, "scorer": scorer, "round_number": round_number, "cache": cache}
        mine_asked(asked, spaces, config.mining, out, **how)

        def clear() -> None:
            for folder in ("vectors", "candidates"):
                shutil.rmtree(cache / folder, ignore_errors=True)

        on_main(clear)

    return remine


def _asked(config: Config, rows: TrainingSet | None = None) -> Asked:
    """What mining has to know of the training data, and of what must stay unseen."""
    if rows is None:
        if not config.data.train:
            raise UserError("data.train is missing: name a file of pairs or a BEIR folder")
        rows = read_training(config.data.train)
    with about("mining.known"):
        known = [read_training([source]) for source in config.mining.known]
    held_out = [] if config.mining.held_out else held_out_tasks(config)
    return asked_queries(rows, known, held_out)


def _mining_models(config: Config) -> dict[str, ModelConfig]:
    """The models whose vectors mining needs, by source, the one that scores first."""
    others = [source for source in config.mining.sources if source not in (MODEL, LEXICAL)]
    trust = config.model.trust_remote_code
    models = {path: ModelConfig(path=path, trust_remote_code=trust) for path in others}
    if config.mining.index != "exact":
        import_faiss(
            f"mining.index: {config.mining.index!r}"
        )  # its absence should not wait for the texts to be encoded
    resolve(config.model.path)
    for path in others:
        on_disk(path, "mining.sources")
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


def space_of(encoder: SentenceTransformer, asked: Asked, folder: Path | None = None) -> Space:
    """Vectors of the asked queries and of all documents, from the store where they are there."""
    texts = asked.documents.texts
    queries = vectors(encoder, asked.texts, "query", folder=folder, title="encode queries")
    documents = vectors(encoder, texts, "document", folder=folder, title="encode documents")
    return Space(queries, documents, fingerprint([queries.fingerprint, documents.fingerprint]))
