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
    check_exportable,
    input_names,
    is_static,
    write_graph,
    write_tokenizer,
)
from tercet.export.parity import (
    LEAST_COSINE,
    MAX_LOSS,
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
from tercet.export.runtime import Feeds, OnnxEncoder, TorchEncoder
from tercet.export.sample import make_sample, spread
from tercet.models import load_encoder
from tercet.progress import say
from tercet.versions import installed_versions

TORCH, FULL, INT8 = "model.safetensors", "onnx/model.onnx", "onnx/model_int8.onnx"
CALIBRATED = 256  # texts whose ranges of activations are looked at
CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class OnnxOptions:
    """What `--onnx` is asked for."""

    int8: bool = False
    texts: Sequence[str] = ()  # the user's: half calibrate the static int8 graph, half are compared
    calibrate: bool = False  # whether a static int8 graph is tried
    tasks: Sequence[RetrievalTask] = ()  # on which nDCG@10 is compared
    max_loss: float = MAX_LOSS  # share of nDCG@10 that the int8 graph may lose


def write_variants(
    model: SentenceTransformer,
    folder: Path,
    options: OnnxOptions,
    checkpoint: Encode,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Add `onnx/` to the exported `folder` of `model`; return what parity.json holds.

    `checkpoint` gives the vectors that each file has to reproduce. Raises UserError if the model
    has a part that no graph can hold, or a file is beyond its limit.
    """
    check_exportable(model)
    (folder / "onnx").mkdir()
    write_tokenizer(model, folder / "onnx" / "tokenizer.json")
    say("export: writing the ONNX graph")
    write_graph(model, folder / FULL)
    held_back = options.texts[1::2] if options.calibrate else options.texts
    sample = make_sample(options.tasks, held_back)
    say(f"export: comparing with the checkpoint on {sample.size:,} texts")
    reference = reference_of(checkpoint, sample)
    settings = ModelConfig(path=str(folder), trust_remote_code=trust_remote_code)
    weights = sorted(folder.rglob("*.safetensors"))
    in_torch = measure(
        TORCH, weights, lambda: TorchEncoder(load_encoder(settings, "export")), reference
    )
    variants = {TORCH: in_torch | {"kept": True}}
    variants[FULL] = _measure(folder, FULL, reference) | {"kept": True}
    for name, found in variants.items():
        refuse_unlike(name, found)
    if options.int8:
        tried = _try_int8(model, folder, options, reference)
        variants |= _keep_best(folder, tried, options.max_loss)
    return {
        "dimensions": int(reference.vectors[0].shape[1]),
        "opset": OPSET,
        "inputs": input_names(model),
        "texts": {"compared": sample.size, "tasks": [task.name for task in sample.tasks]},
        "limits": {"least_cosine": LEAST_COSINE, "int8_loss": options.max_loss},
        "machine": _machine(),
        "versions": installed_versions()
        | {name: version(name) for name in ("onnx", "onnxruntime", "tokenizers")},
        "variants": variants,
    }


def _measure(folder: Path, file: str, reference: Reference) -> Measured:
    say(f"export: measuring {file}")
    return measure(file, [folder / file], lambda: OnnxEncoder(folder, file), reference)


def _try_int8(
    model: SentenceTransformer, folder: Path, options: OnnxOptions, reference: Reference
) -> dict[str, Measured]:
    """Write and measure every kind of int8 graph there is for this model, each in its own file."""
    reduce = int8_saturates()
    ways: dict[str, Callable[[Path], None]] = {}
    if is_static(model):
        ways["rows"] = lambda path: write_graph(model, path, int8=True)
    else:
        source = folder / FULL
        ways["dynamic"] = lambda path: quantise_dynamic(source, path, reduce_range=reduce)
        if options.calibrate:
            feeds = _calibration(OnnxEncoder(folder), options.texts[::2])
            ways["static"] = lambda path: quantise_static(source, path, feeds, reduce_range=reduce)
    found = {}
    for way, write in ways.items():
        file = f"onnx/model_int8_{way}.onnx"
        write(folder / file)
        found[way] = _measure(folder, file, reference) | {"quantisation": way}
    return found


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
