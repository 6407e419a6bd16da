"""Fill the tables of docs/ and of the README from the results: `python -m benchmarks.tables`.

Only results that are there are filled in; the marks of the others stay as they are.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import (
    comparison,
    compiled,
    distillation_tables,
    encoding,
    evaluation,
    exports,
    guide_mask,
    inference,
    loss_stage,
    mining,
    mining_quality,
    mteb_agreement,
    pruning,
    quality,
    quantised,
    scale,
    train_step,
)
from benchmarks.machine import RESULTS, ratio, targets_note
from tercet.files import write_text
from tercet.report.table import fill_marked, markdown_table

ROOT = Path(__file__).parent.parent
SPEED = (
    "train_step",
    "loss_stage",
    "guide_mask",
    "encoding",
    "inference",
    "pruning",
    "mining",
    "evaluation",
)
Result = dict[str, Any]


def main() -> None:
    """Read every result there is and fill the pages that show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    for page, shown in pages(read(parser.parse_args().results)).items():
        write_text(ROOT / page, filled(page, shown))


def read(folder: Path) -> dict[str, Result]:
    """Every result of a folder, by the program's name."""
    return {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in folder.glob("*.json")}


def pages(found: dict[str, Result]) -> dict[str, dict[str, str]]:
    """What stands between the marks of each page, by its path, for the results there are."""
    shown: dict[str, dict[str, str]] = {}

    def show(page: str, tables: dict[str, str]) -> None:
        shown[page] = shown.get(page, {}) | tables

    if any(name in found for name in SPEED):
        show("docs/benchmarks.md", tables(found))
        show("README.md", {"benchmarks": markdown_table(summary(found))})
    if "quality" in found:
        show("docs/results.md", quality.tables(found["quality"]))
    if "mteb_agreement" in found:
        show("docs/evaluation.md", mteb_agreement.tables(found["mteb_agreement"]))
    if "mining_quality" in found:
        show("docs/mining.md", mining_quality.tables(found["mining_quality"]))
    if "distillation" in found:
        show("docs/distillation.md", distillation_tables.tables(found["distillation"]))
    if "scale" in found:
        show("docs/scale.md", scale.tables(found["scale"]))
    if "pruning" in found:
        show("docs/decisions.md", {"pruning": pruning.verdict(found["pruning"])})
    if "exports" in found:
        show("docs/export.md", exports.tables(found["exports"]))
    if "quantised" in found:
        show("docs/comparing.md", quantised.tables(found["quantised"]))
    if "comparison" in found:
        show("docs/comparing.md", comparison.tables(found["comparison"]))
    if "demo" in found:
        printed = f"```text\n{found['demo']['printed'].rstrip()}\n```"
        seconds = f"It took {found['demo']['seconds']:.0f} seconds after the installation."
        show("README.md", {"demo": f"{printed}\n\n{seconds}"})
    return shown


def filled(page: str, shown: Mapping[str, str]) -> str:
    """A page of the project with these tables between its marks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, table in shown.items():
        text = fill_marked(text, name, table)
    return text


def tables(results: dict[str, Result]) -> dict[str, str]:
    """What stands between each pair of marks on the page, for the results there are."""
    found: dict[str, str] = {}
    if step := results.get("train_step"):
        found["machine"] = _machine(step)
        found["train_step"] = (
            markdown_table(train_step.step_rows(step)) + "\n\n" + _step_notes(step)
        )
        memory = markdown_table(train_step.memory_rows(step))
        found["memory"] = f"{memory}\n\n{train_step.memory_note(step)}"
    if both := results.get("compiled"):
        found["compiled"] = compiled.note(both)
    if loss := results.get("loss_stage"):
        found["loss_stage"] = markdown_table(loss_stage.rows(loss)) + "\n\n" + _loss_notes(loss)
    if guide := results.get("guide_mask"):
        found["guide_mask"] = markdown_table(guide_mask.rows(guide)) + "\n\n" + _guide_notes(guide)
    if texts := results.get("encoding"):
        found["encoding"] = markdown_table(encoding.rows(texts)) + "\n\n" + _encoding_notes(texts)
    if scored := results.get("evaluation"):
        found["evaluation"] = (
            f"{markdown_table(evaluation.rows(scored))}\n\n{evaluation.note(scored)}"
        )
    if used := results.get("inference"):
        notes = inference.notes(used)
        found["inference"] = markdown_table(inference.rows(used)) + "\n\n" + notes
    if cut := results.get("pruning"):
        found["pruning"] = markdown_table(pruning.rows(cut)) + "\n\n" + pruning.notes(cut)
    for part, section in results.get("mining", {}).items():
        if part in mining.ROWS:
            table, note = mining.ROWS[part](section), mining.NOTES[part](section)
            found[f"mining_{part}"] = f"{markdown_table(table)}\n\n{note}"
    return found


def summary(results: dict[str, Result]) -> list[dict[str, str]]:
    """The few rows that the README shows."""
    rows = []
    if step := results.get("train_step"):
        own, memory = step["memory"]["ours"]["extra_mib"], step["memory"]["MNRL"]["extra_mib"]
        rows.append(_row("MNRL, whole step", step["times_faster"]["MNRL"], own / memory))
        for name in dict.fromkeys((train_step.DEFAULT, step["best_cached"])):
            rows.append(_row(f"{name}, whole step", step["times_faster"][name]))
    for name, what in (("loss_stage", "CachedMNRL"), ("guide_mask", "GISTEmbedLoss")):
        if one := results.get(name):
            memory = {side: run["extra_mib"] for side, run in one["memory"].items()}
            share = memory["ours"] / memory["theirs"]
            rows.append(_row(f"{what}, loss alone", one["times_faster"], share))
    if texts := results.get("encoding"):
        rows.append(_row("encode, its best batch size", texts["times_faster"]))
    if used := results.get("inference"):
        took, peer = used["seconds"]["queries"], inference.PEER
        for graph in (inference.FULL, inference.INT8):
            rows.append(_row(f"encode, one query; ours as {graph}", ratio(took, peer, graph)))
    if peer := results.get("mining", {}).get("peer"):
        what, memory = "mine_hard_negatives", peer["memory"]
        share = memory["ours"]["extra_mib"] / memory[what]["extra_mib"]
        rows.append(_row(what, peer["times_faster"][what], share))
    if scored := results.get("evaluation"):
        memory = {name: peak["extra_anonymous_mib"] for name, peak in scored["memory"].items()}
        share = memory[evaluation.OURS] / memory[evaluation.PEER]
        peer = f"{evaluation.PEER}, depth {evaluation.PEER_DEPTH}"
        rows.append(_row(peer, scored["times_faster"][evaluation.OURS], share))
    return rows


def _row(what: str, speed: float, memory: float | None = None) -> dict[str, str]:
    row = {"Against sentence-transformers": what, "Times faster": f"{speed:.1f}"}
    if memory is None:
        return row
    return row | {"Memory, ours / theirs": f"{memory:.2f}" if memory >= 0.01 else "< 0.01"}


def _machine(found: Result) -> str:
    machine = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    peak = sum(found["gemm_peak"]) / len(found["gemm_peak"]) / 1e9
    return (
        f"{machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['vector_flags'])}), {machine['threads']} threads, "
        f"{machine['memory_gib']:.0f} GiB, {machine['system']}, Python {machine['python']}, "
        f"{packages}. Large float32 matrix products reach {peak:.0f} GFLOP/s."
    )


def _step_notes(found: Result) -> str:
    tokens = found["tokens"]
    return (
        f"{found['batch']} pairs, on average {tokens['per_query']:.0f} and "
        f"{tokens['per_document']:.0f} tokens, the longest {tokens['longest']}. Ours computes "
        f"{tokens['padded'] / tokens['real']:.2f} tokens for each real one, in "
        f"{tokens['micro_batches']} micro-batches of at most {found['micro_tokens']}, and reaches "
        f"{found['share_of_peak']:.0%} of the machine's matrix peak on real tokens. Losses differ "
        f"by {found['loss_difference']:.0e}, gradient norms by {found['norm_difference']:.0e} "
        "(relative)."
    )


def _loss_notes(found: Result) -> str:
    return (
        f"{found['queries']:,} queries, {found['documents']:,} documents, width {found['width']}: "
        f"{found['times_faster']:.1f} times faster, {found['times_matmuls']:.2f} times the time of "
        f"the four matrix products alone. Gradients differ by {found['gradient_difference']:.0e}."
    )


def _guide_notes(found: Result) -> str:
    return (
        f"Batch {found['batch']}, width {found['width']}: "
        f"{found['times_faster']:.0f} times faster. "
        f"Gradients differ by {found['gradient_difference']:.0e}."
    )


def _encoding_notes(found: Result) -> str:
    each = found["tokens"] / found["documents"]
    return (
        f"{found['documents']:,} documents of {found['corpus']}, on average {each:.0f} tokens: "
        f"{found['times_faster']:.2f} times faster, {found['times_faster_stored']:.2f} times into "
        f"a store on the disk. {found['share_of_peak']:.0%} of the machine's matrix peak on real "
        f"tokens. Vectors differ by at most {found['largest_difference']:.0e}. "
        + targets_note(found["targets"])
    )


if __name__ == "__main__":
    main()
