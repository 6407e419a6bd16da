"""Make smaller models, and pairs of a small and a large one."""

from dataclasses import asdict
from pathlib import Path

from tercet.configs import Config, ModelConfig, save
from tercet.data import read_corpus
from tercet.errors import UserError
from tercet.export import MODULES, export_model, made_card
from tercet.files import check_replaceable, writable_folder, write_json
from tercet.models import (
    Corpus,
    Size,
    Student,
    default_device,
    load_encoder,
    make_student,
    pair_models,
    resolve,
)
from tercet.processes import one_process
from tercet.report import markdown_table, size_table
from tercet.stages.names import name_of, refuse_existing
from tercet.train.rows import read_rows

PROOF_TEXTS = 64  # of each role, on which what was written is compared with what was made


def student(config: Config) -> Student:
    """Make a smaller model out of `config.model` as `config.student` says.

    Writes `<output>/model`, proven to load as what was made, `<output>/student.json` with the
    sizes, and the resolved config as `student.yaml`. Raises UserError under a launcher.
    """
    one_process("student")
    return write_student(config)


def write_student(config: Config) -> Student:
    """What `student` does, by this process alone: the main one of a run that begins with it."""
    folder = writable_folder(Path(config.output))
    refuse_existing(folder / "model", config.overwrite)
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
        made.model.to("cpu"),  # where what was written is loaded to be compared
        folder / "model",
        card=card,
        texts=texts,
        overwrite=True,
        keep=[config.model.path],
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


def pair(
    query_model: str,
    document_model: str,
    out: Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> tuple[Size, Size]:
    """Write one checkpoint that encodes queries with one model and documents with another, proven.

    Returns the sizes of the two. Raises UserError under a launcher.
    """
    one_process("pair")
    check_replaceable(out, MODULES, overwrite=overwrite, keep=[query_model, document_model])
    names = name_of(query_model), name_of(document_model)
    sides = [
        load_encoder(ModelConfig(path=path, trust_remote_code=trust_remote_code), "pair")
        for path in (query_model, document_model)
    ]
    paired = pair_models(sides[0], sides[1], names)
    sizes = Size.of(sides[0]), Size.of(sides[1])
    rows = [
        {"Encodes": what, "Model": name, "Parameters": f"{size.parameters:,}"}
        for what, name, size in zip(("queries", "documents"), names, sizes, strict=True)
    ]
    card = made_card(
        name_of(str(out)),
        "Two encoders of one vector space: use `encode_query` and `encode_document`.",
        markdown_table(rows),
    )
    export_model(paired, out, card=card, overwrite=overwrite, trust_remote_code=trust_remote_code)
    return sizes
