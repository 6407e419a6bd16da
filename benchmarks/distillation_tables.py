"""The tables of docs/distillation.md, out of distillation.json."""

from collections.abc import Mapping
from typing import Any

from benchmarks.distillation import STATIC, STUDENTS, TUNED
from benchmarks.distillation_aims import losses
from benchmarks.distillation_static import TRIAL_EPOCHS
from benchmarks.distillation_work import CODE
from benchmarks.exports import processor
from benchmarks.machine import targets_note
from tercet.evaluation.retention import TEACHER
from tercet.report import curve_table, markdown_table
from tercet.report.retention import retention_note, retention_table
from tercet.report.table import p_value, percent


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What docs/distillation.md shows, of the sections that are there."""
    shown: dict[str, str] = {}
    students = [n for n in (*STUDENTS, STATIC, *TUNED) if n in found]
    if students:
        here = " ".join(dict.fromkeys(processor(found[name]) for name in students))
        notes = "\n".join(f"- {n}. {targets_note(found[n]['targets'])}" for n in students)
        table = markdown_table([_student(n, found[n]) for n in students])
        shown["students"] = f"{table}\n\n{notes}\n\n{here}"
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
    speed, student, parts = found["speed"]["student"], found["student"], found["parts"]
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
        "Of the teacher": percent(student["share"]),
        "Difference": f"{delta['mean']:+.3f}, {p_value(delta['p'])}",
        "Its queries, teacher's index": percent(found["asymmetric"]["share"]),
        "Documents / s": f"{speed['documents_times_faster']:.2f} x",
        "Queries / s": f"{speed['queries_times_faster']:.1f} x",
        "Minutes": f"{found['minutes']:.1f}" + (f" (in {parts} parts)" if parts > 1 else ""),
        "Teacher's minutes": f"{found['teacher_minutes']:.1f}",
    }


def _static_note(found: Mapping[str, Any]) -> str:
    return (
        f"nDCG@10 on dev before training: {_listed(found['tables_on_dev'])}. After {TRIAL_EPOCHS} "
        f"epochs: {_listed(found['trials_on_dev'])}."
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
                "Of the untrimmed": percent(quality["share"]),
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
        for who in ("tuned", "merged"):
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
    return (
        f"Chosen: {found['chosen']:.2g} of the tuned model. {gained} on {CODE}; "
        f"significant losses elsewhere: {', '.join(losses(found)) or 'none'}. The "
        f"queries that were chosen by are not among those reported. STS benchmark (test), Spearman "
        f"with 95 % interval: {sentences}; merged less base {delta['mean']:+.3f} "
        f"[{delta['low']:+.3f}, {delta['high']:+.3f}], {p_value(delta['p'])}, by paired bootstrap. "
        f"{targets_note(found['targets'])}"
    )
