"""The tables of docs/distillation.md, out of distillation.json."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.distillation import SEEDED, STATIC, STUDENTS, TUNED, first_of
from benchmarks.distillation_aims import elsewhere, losses
from benchmarks.distillation_static import TRIAL_EPOCHS
from benchmarks.distillation_work import CODE
from benchmarks.exports import processor
from benchmarks.machine import targets_note
from tercet.evaluation.retention import TEACHER
from tercet.report import curve_table, markdown_table
from tercet.report.retention import retention_note, retention_table, share_cell
from tercet.report.table import p_value, percent


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What docs/distillation.md shows, of the sections that are there."""
    shown: dict[str, str] = {}
    students = [n for n in found if first_of(n) in (*STUDENTS, STATIC, *TUNED)]
    if students:
        here = " ".join(dict.fromkeys(processor(found[name]) for name in students))
        notes = "\n".join(f"- {n}. {targets_note(found[n]['targets'])}" for n in students)
        table = markdown_table([_student(n, found[n]) for n in students])
        shown["students"] = f"{table}\n\n{notes}{_seeds_note(found)}\n\n{here}"
    if chosen := found.get(STATIC):
        shown["static_choice"] = _static_note(chosen)
    if cut := found.get("vocabulary_code"):
        table = markdown_table(_vocabulary(cut))
        shown["vocabulary"] = f"{table}\n\n{targets_note(cut['targets'])}"
    if merged := found.get("merge"):
        shown["merge_curve"] = markdown_table(curve_table(merged["curve"]))
        shown["merge_test"] = markdown_table(_merged(merged)) + "\n\n" + _merge_note(merged)
    if every := found.get("retention"):
        shown["retention"] = (
            f"{markdown_table(retention_table(every))}\n\n{retention_note(every)}\n\n"
            "![Quality against speed](../benchmarks/results/distillation.svg)"
        )
    return shown


def _student(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    speed, student = found["speed"]["student"], found["student"]
    parts, taught = found["parts"], found["teacher_minutes"]
    delta = student["against_teacher"]
    rows = f", {found['rows']:,} rows" if "rows" in found else ""
    read = found["max_length"]
    tokens = f", {read['student']} tokens" if read["student"] < read[TEACHER] else ""
    return {
        "Student": name,
        "Recipe": found["recipe"] + rows + tokens,
        "Teacher": f"{found['teacher']['mean']:.3f}",
        "Untrained": f"{found['untrained']['mean']:.3f}" if "untrained" in found else "",
        "nDCG@10": f"{student['mean']:.3f} [{student['low']:.3f}, {student['high']:.3f}]",
        "Of the teacher": share_cell(student),
        "Difference": f"{delta['mean']:+.3f}, {p_value(delta['p'])}",
        "Its queries, teacher's index": share_cell(found["asymmetric"]),
        "Documents / s": f"{speed['documents_times_faster']:.2f} x",
        "Queries / s": f"{speed['queries_times_faster']:.1f} x",
        "Minutes": f"{found['minutes']:.1f}" + (f" (in {parts} parts)" if parts > 1 else ""),
        "Teacher's minutes": f"{taught:.1f}" if taught >= 0.05 else "stored",
    }


def _seeds_note(found: Mapping[str, Any]) -> str:
    """How far the students of several seeds are apart."""
    note = ""
    for name in SEEDED:
        alike = [one["student"] for n, one in found.items() if first_of(n) == name]
        shares = [one["share"] or 0.0 for one in alike]
        if len(shares) > 1:
            low, mean, high = (percent(of(shares)) for of in (min, fmean, max))
            note += f"\n- {name}, {len(shares)} seeds: {mean} of the teacher, from {low} to {high}."
    return note


def _static_note(found: Mapping[str, Any]) -> str:
    return (
        f"nDCG@10 on dev before training: {_listed(found['tables_on_dev'])}. After {TRIAL_EPOCHS} "
        f"epochs of texts, or as many steps with labels: {_listed(found['trials_on_dev'])}. All "
        f"tries took {found['choosing_minutes']:.1f} minutes besides those of the training."
    )


def _listed(scores: Mapping[str, float]) -> str:
    best = max(scores, key=lambda how: scores[how])
    tried = "; ".join(f"`{how}` {value:.3f}" for how, value in scores.items())
    return f"{tried}; taken: `{best}`"


def _vocabulary(found: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for who, size in (("teacher", found["before"]), ("student", found["after"])):
        quality = found[who]
        rows.append(
            {
                "Vocabulary": f"{size['tokens']:,} tokens",
                "nDCG@10": f"{quality['mean']:.3f} [{quality['low']:.3f}, {quality['high']:.3f}]",
                "Of the untrimmed": share_cell(quality),
                "Parameters": f"{size['parameters']:,}",
                "MB": f"{size['megabytes']:.1f}",
            }
        )
    return rows


def _merged(found: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for data, models in found["test"].items():
        row = {"Collection": data, "Documents": f"{models['documents']:,}"}
        row["Base"] = f"{models['base']['mean']:.3f}"
        for who in [w for w in ("tuned", "merged") if w in models]:
            delta = models[who]["against_teacher"]
            changed = f"{delta['mean']:+.3f}, {p_value(delta['p'])}"
            row[who.capitalize()] = f"{models[who]['mean']:.3f} ({changed})"
        rows.append(row)
    return rows


def _merge_note(found: Mapping[str, Any]) -> str:
    share = found["gain_kept"]
    gained = (
        f"It keeps {percent(share)} of the gain" if share is not None else "Tuning gains nothing"
    )
    similar = found["similarity"]
    sentences = ", ".join(
        f"{who} {mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
        for who, mean in similar.items()
    )
    delta = similar["merged"]["against_base"]
    lowest = ", ".join(f"{name} {one['low']:+.3f}" for name, one in elsewhere(found).items())
    return (
        f"Chosen: {found['chosen']:.2g} of the tuned model. {gained} on {CODE}; significant losses "
        f"elsewhere (p adjusted by Holm): {', '.join(losses(found)) or 'none'}. Lower "
        f"ends of its differences' intervals there: {lowest}. The queries that were chosen by are "
        f"not among those reported. STS benchmark (test), Spearman "
        f"with 95 % interval: {sentences}; merged less base {delta['mean']:+.3f} "
        f"[{delta['low']:+.3f}, {delta['high']:+.3f}], {p_value(delta['p'])}, by paired bootstrap. "
        f"{targets_note(found['targets'])}"
    )
