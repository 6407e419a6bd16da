"""The ONNX files of an exported folder, each measured before it may stay."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.data.rows import RetrievalTask
from tercet.export.cpu import cpu_name, has_vnni, int8_saturates
from tercet.export.graph import (
    OPSET,
    input_names,
    is_static,
    output_names,
    write_graph,
    write_tokenizer,
)
from tercet.export.parity import (
    LEAST_COSINE,
    MAX_LOSS,
    MOST_STRETCH,
    Encode,
    Measured,
    Reference,
    loss,
    measure,
    reference_of,
    refuse_unlike,
    refuse_worse,
)
from tercet.export.quantise import quantise_dynamic, quantise_static
from tercet.export.runtime import Feeds, OnnxEncoder, TorchEncoder, onnxruntime
from tercet.export.sample import LEAST, make_sample, spread
from tercet.files import sha256
from tercet.models import load_encoder, max_length
from tercet.progress import say
from tercet.versions import installed_versions

TORCH, FULL, INT8 = "model.safetensors", "onnx/model.onnx", "onnx/model_int8.onnx"
TOKENIZER = "onnx/tokenizer.json"
CALIBRATED = 256  # texts whose ranges of activations are looked at
CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class OnnxOptions:
    """What `--onnx` is asked for."""

    int8: bool = False
    texts: Sequence[str] = ()  # compared, beside those of the tasks
    calibrate: Sequence[str] = ()  # half set the ranges of a static int8 graph, half are compared
    tasks: Sequence[RetrievalTask] = ()  # on which nDCG@10 is compared
    max_loss: float = MAX_LOSS  # share of nDCG@10 that the int8 graph may lose
    sources: Sequence[Path] = ()  # what all that was read from: never replaced by the export


def write_onnx(model: SentenceTransformer, folder: Path, *, int8: bool = False) -> None:
    """Write the model's graph and tokenizer to `folder`/onnx, and with `int8` the 8-bit graph.

    That one is what `tercet export --int8` writes without --calibrate. `OnnxEncoder(folder)` reads
    them, if the model's own files are there too. Raises UserError if onnxruntime is not installed
    or the model cannot be traced.
    """
    onnxruntime()
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    write_tokenizer(model, folder / TOKENIZER)
    write_graph(model, folder / FULL)
    if int8:
        _int8_way(model, folder)[1](folder / INT8)


def write_variants(
    model: SentenceTransformer,
    folder: Path,
    options: OnnxOptions,
    checkpoint: Encode,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Add `onnx/` to the exported `folder` of `model`; return what parity.json holds.

    `checkpoint` gives the vectors that each file has to reproduce. Raises UserError if the model
    cannot be traced, or a file is beyond its limit.
    """
    say("export: writing the ONNX graph")
    write_onnx(model, folder)
    held_back = options.calibrate if is_static(model) else options.calibrate[1::2]
    texts = [*options.texts, *held_back]
    sample = make_sample(options.tasks, texts, max_length(model))
    few = "" if sample.size >= LEAST else f", fewer than the {LEAST:,} that prove an export"
    say(f"export: comparing with the checkpoint on {sample.size:,} texts{few}")
    reference = reference_of(checkpoint, sample)
    settings = ModelConfig(path=str(folder), trust_remote_code=trust_remote_code)
    weights = sorted(folder.rglob("*.safetensors"))
    in_torch = measure(
        TORCH, weights, lambda: TorchEncoder(load_encoder(settings, "export")), reference
    )
    variants = {TORCH: in_torch | {"kept": True, "sha256": _hashes(folder, weights)}}
    variants[FULL] = _measure(folder, FULL, reference) | {"kept": True}
    for name, found in variants.items():
        refuse_unlike(name, found)
    if options.int8:
        tried = _try_int8(model, folder, options, reference)
        variants |= _keep_best(folder, tried, options.max_loss)
    for name in variants.keys() & {FULL, INT8}:
        variants[name]["sha256"] = _hashes(folder, [folder / name, folder / TOKENIZER])
    return _facts(model, options, reference) | {"variants": variants}


def _facts(
    model: SentenceTransformer, options: OnnxOptions, reference: Reference
) -> dict[str, Any]:
    """What was compared, by which limits, where and with which versions."""
    sample = reference.sample
    return {
        "dimensions": int(reference.vectors[0].shape[1]),
        "opset": OPSET,
        "inputs": input_names(model),
        "outputs": output_names(model),
        "texts": {"compared": sample.size, "tasks": [task.name for task in sample.tasks]},
        "limits": {
            "least_cosine": LEAST_COSINE,
            "most_stretch": MOST_STRETCH,
            "int8_loss": options.max_loss,
        },
        "machine": _machine(),
        "versions": installed_versions()
        | {name: version(name) for name in ("onnx", "onnxruntime", "tokenizers")},
    }


def _hashes(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 by place in the folder: several modules may have a model.safetensors."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def _measure(folder: Path, file: str, reference: Reference) -> Measured:
    say(f"export: measuring {file}")
    return measure(file, [folder / file], lambda: OnnxEncoder(folder, file), reference)


def _try_int8(
    model: SentenceTransformer, folder: Path, options: OnnxOptions, reference: Reference
) -> dict[str, Measured]:
    """Write and measure every kind of int8 graph there is for this model, each in its own file."""
    ways = dict([_int8_way(model, folder)])
    if options.calibrate and not is_static(model):
        feeds = _calibration(OnnxEncoder(folder), options.calibrate[::2])
        reduce = int8_saturates()
        ways["static"] = lambda path: quantise_static(
            folder / FULL, path, feeds, reduce_range=reduce
        )
    found = {}
    for way, write in ways.items():
        file = f"onnx/model_int8_{way}.onnx"
        write(folder / file)
        found[way] = _measure(folder, file, reference) | {"quantisation": way}
    return found


def _int8_way(model: SentenceTransformer, folder: Path) -> tuple[str, Callable[[Path], None]]:
    """What the int8 graph that needs no texts is called, and what writes it."""
    if is_static(model):
        return "rows", lambda path: write_graph(model, path, int8=True)
    reduce = int8_saturates()
    return "dynamic", lambda path: quantise_dynamic(folder / FULL, path, reduce_range=reduce)


def _calibration(encoder: OnnxEncoder, texts: Sequence[str]) -> list[Feeds]:
    """Batches of like length out of the user's texts, read as documents."""
    tokens = encoder.tokens(spread(texts, CALIBRATED), "document")
    tokens.sort(key=len)
    starts = range(0, len(tokens), CALIBRATION_BATCH)
    return [encoder.feeds(tokens[start : start + CALIBRATION_BATCH]) for start in starts]


def _keep_best(folder: Path, tried: dict[str, Measured], max_loss: float) -> dict[str, Measured]:
    """Keep the graph whose vectors are nearest, of those within the limit if any is."""

    def merit(way: str) -> tuple[bool, float]:
        return loss(tried[way]) <= max_loss, tried[way]["cosine"]["mean"]

    best = max(tried, key=merit)
    refuse_worse(INT8, tried[best], max_loss)
    for way in tried:
        path = folder / f"onnx/model_int8_{way}.onnx"
        path.rename(folder / INT8) if way == best else path.unlink()
    others = {way: found for way, found in tried.items() if way != best}
    return {INT8: tried[best] | {"kept": True}} | {
        f"int8, {way}": found | {"kept": False} for way, found in others.items()
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": cpu_name(),
        "vnni": has_vnni(),
        "reduce_range": int8_saturates(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }
