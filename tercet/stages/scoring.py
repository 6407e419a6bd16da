"""Score models, a reranker and BM25 on retrieval tasks, and models on pairs of sentences."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.configs.schema import Prompts
from tercet.data import leakage, read_similarity, read_task
from tercet.errors import UserError, about
from tercet.evaluation import (
    PLUS,
    Comparison,
    Result,
    comparisons,
    comparisons_in,
    read_comparisons,
    read_result,
    refuse_foreign,
    safe_name,
    write_comparisons,
)
from tercet.evaluation.bm25 import NAME as BM25
from tercet.evaluation.comparisons import reranks
from tercet.evaluation.results import COMPARISONS, place_of
from tercet.files import writable_folder
from tercet.models import default_device, load_encoder, prompts_of, resolve
from tercet.peers import together
from tercet.processes import on_main
from tercet.progress import say
from tercet.report import delta_line
from tercet.stages.measuring import (
    evaluate_bm25,
    evaluate_model,
    evaluate_similarity,
    evaluate_stages,
    second_stage,
)
from tercet.stages.names import name_of, refuse_mixed, refuse_models, refuse_twice
from tercet.stages.official import (
    check_by_mteb,
    evaluate_official,
    official_parts,
    refuse_disagreement,
)
from tercet.stages.tasks import PLAIN, Search, check, suited, training_texts

OWN = Prompts()  # the checkpoint's


@together()
def evaluate(
    model: str,
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str = "test",
    against: Sequence[str] = (),
    prompts: Prompts = OWN,
    how: Search = PLAIN,
    similarity: Sequence[str | Path] = (),
    official: Sequence[str] = (),
    trained_on: Sequence[str] = (),
    check_with_mteb: bool = False,
    trust_remote_code: bool = False,
) -> list[Result]:
    """Score `model`, every model of `against` and BM25 on BEIR folders.

    Each result is written below `out` as JSON with a TREC run file beside it. Returned by task,
    in the order `against`, BM25, `model`, `model` reranked if `how` says so; then those on
    `similarity` (TSV files), without BM25, and on `official` (names of MTEB tasks). `prompts` are
    put before the texts of `model` instead of its own. `trained_on` names training data of
    `model`, or its config: what of the tasks is in there is counted. `check_with_mteb`: MTEB
    itself also scores `model` on `folders`; another number of its raises UserError when all is
    written. Under `accelerate launch` the processes share encoding and search, the main one does
    the rest, and all return the results.
    """
    if not (folders or similarity or official):
        raise UserError("nothing to evaluate on: name a BEIR folder, a TSV of STS or an MTEB task")
    if check_with_mteb and not folders:
        raise UserError("--check-with-mteb: is of BEIR folders; name one with --data")
    paths = (*against, model)
    names = _names(paths, how)
    for path in paths:
        resolve(path, "model" if path == model else "--against")
    parts = official_parts(official, how, split, check_with_mteb=check_with_mteb)
    tasks = [read_task(folder, split) for folder in folders]
    pairs = [read_similarity(path) for path in similarity]
    local = [(task.name, task.split) for task in (*tasks, *pairs)]
    refuse_twice("tasks", [*{name for name, _ in local}, *official])
    parts += local
    refuse_twice("tasks", [safe_name(f"{name}.{part}") for name, part in parts])
    for task in tasks:
        check(task, how)
    contents = {(task.name, task.split): task.fingerprint for task in tasks}
    _refuse_overwriting(names, parts, contents, out)
    trained = training_texts(trained_on) if trained_on else None
    second = second_stage(how, trust_remote_code)
    encoders = {
        name_of(path): _load(path, prompts if path == model else OWN, trust_remote_code)
        for path in paths
    }
    on_main(lambda: _say_other_prompts(encoders, parts, out))
    mine = name_of(model)
    results: list[Result] = []
    for task in tasks:
        leak = None if trained is None else leakage(trained, task)
        here = suited(how, task)
        for name, encoder in encoders.items():
            if name != mine:
                results.append(evaluate_model(encoder, name, task, out, here))
                continue
            results.append(on_main(lambda task=task, here=here: evaluate_bm25(task, out, here)))
            found = evaluate_stages(encoder, name, task, out, here, second=second, leak=leak)
            if check_with_mteb:
                found[0] = check_by_mteb(model, prompts, found[0], task, out, trust_remote_code)
            results += found
    for task in pairs:
        results += [evaluate_similarity(e, name, task, out) for name, e in encoders.items()]
    for task in official:
        results += evaluate_official(encoders, mine, task, out, how, second, trained)
    on_main(lambda: write_comparisons(comparisons_in(out, results, mine), out))
    refuse_disagreement(results if check_with_mteb else ())
    return results


def delta_lines(results: Sequence[Result], model: str, out: Path | None = None) -> list[str]:
    """How `model` differs from every other one on each task, with intervals and adjusted p.

    p is adjusted over the tasks of `results`, or over all that `out`, where `evaluate` wrote them,
    holds of the two models.
    """
    if out is None:
        return _lines(comparisons(results, model))
    tasks = {(result.task, result.split) for result in results}
    return _lines(
        [
            one
            for one in read_comparisons(out)
            if (one.task, one.split) in tasks and (one.model == model or reranks(one.model, model))
        ]
    )


def _lines(found: Sequence[Comparison]) -> list[str]:
    several = len({(one.task, one.split) for one in found}) > 1
    return [
        (f"{one.task}: " if several else "")
        + delta_line(
            one.base,
            one.model,
            one.delta,
            one.metric,
            holm=one.holm if several or one.holm != one.delta.p else None,
        )
        for one in found
    ]


def _names(paths: Sequence[str], how: Search) -> list[str]:
    """What the rows are called. Results are filed by it: UserError if two would meet."""
    beside = [BM25]
    if how.rerank is not None:
        beside.append(f"{name_of(paths[-1])}{PLUS}{name_of(how.rerank)}")
    refuse_models(paths, beside)
    return [*map(name_of, paths), *beside]


def _refuse_overwriting(
    names: Sequence[str],
    parts: Sequence[tuple[str, str]],
    contents: Mapping[tuple[str, str], str],
    out: Path,
) -> None:
    """Raise UserError unless what stands where results will be written was written by `evaluate`.

    `parts`: task and split; `contents`: the fingerprints of those that are known.
    """
    with about("--out"):
        refuse_mixed(out, COMPARISONS)
        writable_folder(out)
        read_comparisons(out)
        for name in names:
            for task, split in parts:
                refuse_foreign(out, name, task, split, contents.get((task, split)))


def _say_other_prompts(
    encoders: Mapping[str, SentenceTransformer], parts: Sequence[tuple[str, str]], out: Path
) -> None:
    """Say which results that will be replaced were made with other prompts."""
    for name, encoder in encoders.items():
        now = prompts_of(encoder)
        for task, split in parts:
            path = place_of(out, name, task, split)
            before = read_result(path).prompts if path.exists() else {}
            if any(now.get(role) != prompt for role, prompt in before.items()):
                say(f"{path}: made with prompts {before}, is replaced by one with {now}")


def _load(path: str, prompts: Prompts, trust_remote_code: bool) -> SentenceTransformer:
    config = ModelConfig(path=path, prompts=prompts, trust_remote_code=trust_remote_code)
    return load_encoder(config, "model").to(default_device())
