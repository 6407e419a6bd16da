"""What a run reads from paths that its config names."""

from collections.abc import Iterator

from tercet.configs import Config

NO_MODELS = ("model", "bm25")  # sources of candidates that are no path
TEACHER, GUIDE = "distil.teacher", "loss.false_negatives.guide"


def model_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Key and path, or name, of each model, whether this run loads it or not."""
    yield "model.path", config.model.path
    for teacher in config.distil.teacher:
        yield TEACHER, teacher.path
    if guide := config.loss.false_negatives.guide:
        yield GUIDE, guide.path
    if scorer := config.mining.rescore.model:
        yield "mining.rescore.model", scorer
    for source in config.mining.source_names:
        if source not in NO_MODELS:
            yield "mining.sources", source


def data_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Key and path of each file or folder of data."""
    data, dev = config.data, config.evaluation.dev
    named = {
        "data.train": [source.path for source in data.train],
        "data.corpus": data.corpus,
        "data.queries": data.queries,
        "data.mined": [data.mined] if data.mined else [],
        "data.held_out": data.held_out,
        "mining.known": [source.path for source in config.mining.known],
        "student.corpus": config.student.corpus,
        "evaluation.dev": [dev] if dev else [],
    }
    return ((key, path) for key, paths in named.items() for path in paths)
