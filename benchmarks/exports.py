"""Do exports keep what was trained? `python -m benchmarks.exports --shared DIR --work DIR`.

Runs the demo, trains once more as it does but with a Matryoshka loss, and teaches the tuned model
to a student of three layers and to a static one. Exports all of them, the first two cut to 128
dimensions, as ONNX and int8, calibrated on the demo's training texts, each compared with its
checkpoint on the demo's code search and on scifact. Then hands scifact over to FAISS and to
embedded Milvus with every kind of index, and asks them.

Each step leaves a JSON in the work folder and is repeated only with another model, other code or
another processor, so the program can be stopped at any time; a training that was stopped goes on.
With another tuned model, other settings or other code it has another folder.
The whole is benchmarks/results/exports.json.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import print as show

from benchmarks.inference import int8_note
from benchmarks.kept import kept_json, trained, weights
from benchmarks.machine import RESULTS, machine, target, targets_note, write_result
from tercet import stages
from tercet.configs import Config, load
from tercet.demo import run_demo
from tercet.export.index import INDEXES
from tercet.export.milvus import EMBEDDED
from tercet.export.parity import LEAST_COSINE, MAX_LOSS
from tercet.export.variants import CALIBRATED, FULL, INT8
from tercet.progress import say
from tercet.report.table import console_table, markdown_table
from tercet.train.rows import read_rows
from tercet.versions import installed_versions, source_version

TASK = "scifact"
DIMS = 128  # of the truncated export
MOST_SIZE = 0.3  # of the fp32 graph's, for int8
# What decides a figure: folders of ours, and packages beside those told of the machine.
CODE = ("configs", "data", "evaluation", "export", "mining", "models", "stages")
ENGINES = ("onnx", "onnxruntime", "faiss-cpu", "pymilvus", "milvus-lite")
TRIPS = [("faiss", index) for index in INDEXES] + [("milvus", index) for index in EMBEDDED]
TAUGHT = ("train.epochs=4", "batch.micro_tokens=2048")
MATRYOSHKA = f"loss.matryoshka={{dims: [384, {DIMS}, 64]}}"


@dataclass(frozen=True)
class Form:
    """One export: of which model, and cut to how many dimensions."""

    model: str
    dims: int | None = None


FORMS = {
    "tuned": Form("tuned"),
    f"tuned, {DIMS} dimensions": Form("tuned", DIMS),
    f"Matryoshka, {DIMS} dimensions": Form("matryoshka", DIMS),
    "three layers": Form("three"),
    "static": Form("static"),
}


def models(work: Path) -> dict[str, str]:
    """The demo's tuned model, its Matryoshka twin and two students of it, all of the same texts."""
    tuned = work / "demo" / "model"
    if not tuned.exists():
        run_demo(tuned.parent)
    how = (f"model.path={tuned}", f"distil.teacher={tuned}")
    twin = recipe(work, MATRYOSHKA)
    students = {
        "three": load("distil_align", [*how, *TAUGHT]),
        "static": load("student_static", how),
    }
    made = {"matryoshka": trained(work / "matryoshka", twin, stages.finetune)["model"]}
    for name, config in students.items():
        data = config.data.model_copy(update={"train": twin.data.train})
        config = config.model_copy(update={"data": data})
        made[name] = trained(work / name, config, stages.distil)["model"]
    return {"tuned": str(tuned)} | made


def recipe(work: Path, *overrides: str) -> Config:
    """What the demo trained with, or something near it."""
    return load(work / "demo" / "config.yaml", overrides)


def exported(
    model: str, form: Form, out: Path, data: Sequence[Path], calibrate: Sequence[str]
) -> dict[str, Any]:
    """The parity file of one export; no limit on what int8 loses, since that is the question."""
    options = stages.onnx_options(int8=True, data=data, max_loss=1.0)
    options = replace(options, calibrate=calibrate)
    found = stages.export(model, out, truncate_dim=form.dims, onnx=options, overwrite=True)
    return {"torch_difference": found.difference, **found.parity}


def handed_over(model: str, data: Path, out: Path, engine: str, index: str) -> dict[str, Any]:
    """What a search engine finds of the ten documents that exact search finds."""
    made = stages.index(model, [data], out, to=engine, index=index, overwrite=True)
    return {"engine": engine, "index": index, "documents": made.documents, **vars(made.recall)}


def measure(work: Path, scifact: Path) -> dict[str, Any]:
    """Every export, then every round trip."""
    made = models(work)
    data = [work / "demo" / "code", scifact]
    learnt = read_rows(recipe(work).data)
    texts = [*learnt.queries.texts, *learnt.documents.texts]
    exports = {}
    for name, form in FORMS.items():
        out = work / "exports" / name.replace(", ", "-").replace(" ", "-")
        say(f"export: {name}")
        exports[name] = kept_json(
            out.with_suffix(".json"),
            lambda f=form, o=out: exported(made[f.model], f, o, data, texts),
            made_by(made[form.model]),
        )
    trips = []
    for engine, index in TRIPS:
        out = work / "indexes" / f"{engine}-{index}"
        say(f"index: {engine}, {index}")
        trip = kept_json(
            out.with_suffix(".json"),
            lambda e=engine, i=index, o=out: handed_over(made["tuned"], scifact, o, e, i),
            made_by(made["tuned"]),
        )
        trips.append(trip)
    read = recipe(work).model.max_length
    return {"exports": exports, "round_trips": trips, "max_length": read}


def made_by(model: str) -> dict[str, Any]:
    """With what a figure was measured: other weights, code or processor make it another."""
    here = machine()
    return {
        "weights": weights(model),
        "code": source_version(CODE),
        **installed_versions(ENGINES),
        **{name: here[name] for name in ("processor", "threads", "packages")},
    }


def export_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each export: likeness, size, and whether it keeps the limits."""
    rows = []
    for name, parity in found["exports"].items():
        full, small = (parity["variants"][file] for file in (FULL, INT8))
        rows.append(
            {
                "Model": name,
                "fp32, MB": f"{full['megabytes']:.1f}",
                "int8, MB": f"{small['megabytes']:.1f}",
                "Share": f"{small['megabytes'] / full['megabytes']:.0%}",
                "fp32: least cosine": f"{full['cosine']['min']:.7f}",
                "int8: mean cosine": told_cosine(small),
                "Not kept": ", ".join(
                    told_cosine(one) for one in parity["variants"].values() if not one["kept"]
                ),
                "Within limits": ", ".join(beyond(full, small)) or "yes",
            }
        )
    return rows


def told_cosine(int8: dict[str, Any]) -> str:
    """Mean cosine of an int8 graph, and which it is."""
    return f"{int8['cosine']['mean']:.4f} ({int8['quantisation']})"


def beyond(full: dict[str, Any], small: dict[str, Any]) -> list[str]:
    """Which limits the fp32 and the int8 graph of one export do not keep."""
    found = [] if full["cosine"]["min"] >= LEAST_COSINE else ["no: cosine of fp32"]
    for task, quality in small["tasks"].items():
        if not quality["loss"] <= MAX_LOSS:
            found.append(f"no: int8 on {task}")
    if not small["megabytes"] <= MOST_SIZE * full["megabytes"]:
        found.append("no: size of int8")
    return found


def aims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at before anything was measured: the worst of all exports and round trips."""
    graphs = [
        [parity["variants"][file] for file in (FULL, INT8)] for parity in found["exports"].values()
    ]
    lost = [task["loss"] for _, small in graphs for task in small["tasks"].values()]
    flat = [trip for trip in found["round_trips"] if trip["index"] == "flat"]
    return [
        target(
            "least cosine of fp32",
            min(full["cosine"]["min"] for full, _ in graphs),
            least=LEAST_COSINE,
        ),
        target("most nDCG@10 lost in int8", max(lost), most=MAX_LOSS),
        target(
            "size of int8 over fp32's",
            max(small["megabytes"] / full["megabytes"] for full, small in graphs),
            most=MOST_SIZE,
        ),
        target("recall@10 of flat indexes", min(trip["at_10"] for trip in flat), least=1),
        target("share with the same ten there", min(trip["same"] for trip in flat), least=1),
    ]


def quality_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each int8 graph and task: nDCG@10, the checkpoint's, and the difference."""
    rows = []
    for name, parity in found["exports"].items():
        small = [one for one in parity["variants"].values() if "quantisation" in one]
        told = [(one, task, quality) for one in small for task, quality in one["tasks"].items()]
        for one, task, quality in told:
            before, after, delta = (quality[k] for k in ("before", "after", "difference"))
            rows.append(
                {
                    "Model": name,
                    "Task": task,
                    "Graph": one["quantisation"] + ("" if one["kept"] else ", not kept"),
                    "nDCG@10": f"{before['mean']:.4f}",
                    "int8": f"{after['mean']:.4f}",
                    "Difference": (
                        f"{delta['mean']:+.4f} [{delta['low']:+.4f}, {delta['high']:+.4f}]"
                    ),
                    "Lost": f"{quality['loss']:.1%}",
                }
            )
    return rows


def speed_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each file: what one query takes, and how many texts a second go through."""
    rows = []
    for name, parity in found["exports"].items():
        for file, one in parity["variants"].items():
            rows.append(
                {
                    "Model": name,
                    "File": file if one["kept"] else f"{file}, not kept",
                    "Load, s": f"{one['load_seconds']:.2f}",
                    "Query p50, ms": f"{one['latency_ms']['p50']:.2f}",
                    "p95": f"{one['latency_ms']['p95']:.2f}",
                    "Texts / s": f"{one['texts_per_second']:,.0f}",
                }
            )
    return rows


def trip_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each search engine and index."""
    return [
        {
            "Engine": trip["engine"],
            "Index": trip["index"],
            "Recall@10": f"{trip['at_10']:.4f}",
            "Among 40": f"{trip['among_40']:.4f}",
            "Same ten": f"{trip['same']:.1%}",
        }
        for trip in found["round_trips"]
    ]


def tables(found: dict[str, Any]) -> dict[str, str]:
    """What docs/export.md shows."""
    kept, quality, speed, trips = (
        markdown_table(rows(found)) for rows in (export_rows, quality_rows, speed_rows, trip_rows)
    )
    limits = (
        f"The limits: a cosine of at least {LEAST_COSINE} for every text in fp32; in int8 at most "
        f"{MAX_LOSS:.0%} of nDCG@10 lost on each task, and {MOST_SIZE:.0%} of the size. "
        "Differences of nDCG@10 are paired, with 95 % intervals. Of a transformer's int8 graphs, "
        f"dynamic and static (calibrated on {CALIBRATED} of the demo's training texts), that of "
        "the higher mean cosine is kept. The transformers read at most "
        f"{found['max_length']} tokens, as the demo trains them: of {TASK}'s abstracts the "
        "beginning."
    )
    of_first, *_ = (parity["machine"] for parity in found["exports"].values())
    in_turn = (
        f"{processor(found)} {int8_note(of_first)} One file was measured after the other, the "
        "first with everything cold; where they take turns: "
        "[benchmarks.md](benchmarks.md#exported-models)."
    )
    first = found["round_trips"][0]
    asked = (
        f'{first["documents"]:,} documents and {first["queries"]:,} queries of {TASK}. "Same ten" '
        "is the share of queries whose ten answers are the exact ones in their order, where scores "
        "within 1e-6 of each other may change places."
    )
    return {
        "exports": f"{kept}\n\n{quality}\n\n{limits} {targets_note(aims(found))}",
        "export_speed": f"{speed}\n\n{in_turn}",
        "round_trips": f"{trips}\n\n{asked}",
    }


def processor(found: dict[str, Any]) -> str:
    """On what the speeds were measured."""
    here = found["machine"]
    return f"{here['processor']}, {here['cores']} cores, {here['threads']} threads."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["TERCET_CACHE"] = str(work / "cache")
    found = measure(work, asked.shared / TASK)
    found["targets"] = aims(found)
    path = write_result("exports", found, asked.out)
    for rows in (export_rows, quality_rows, speed_rows, trip_rows):
        show(console_table(rows(found)))
    print(path)


if __name__ == "__main__":
    main()
