"""What is compared: exported graphs as their users run them, and the model in torch."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from tercet.errors import UserError
from tercet.export.graph import OUTPUT
from tercet.files import library_errors
from tercet.models import Role, encode, single_encoder, token_batches
from tercet.models.encode import CPU_TOKENS
from tercet.progress import progress

Feeds = dict[str, NDArray[np.int64]]


class OnnxEncoder:
    """Texts -> vectors with a graph of an exported folder; neither weights nor torch modules."""

    def __init__(self, folder: Path, file: str = "onnx/model.onnx") -> None:
        """`file` is the graph's place in the folder; torch's number of threads is used."""
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.file = file
        with self._named():
            self.session = runtime.InferenceSession(
                str(folder / file), options, providers=["CPUExecutionProvider"]
            )
        self.inputs = [given.name for given in self.session.get_inputs()]
        settings = (folder / "config_sentence_transformers.json").read_text(encoding="utf-8")
        self.prompts: dict[str, str] = json.loads(settings)["prompts"]
        self.tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))
        self.pad_id = int(self.tokenizer.padding["pad_id"]) if self.tokenizer.padding else 0
        self.tokenizer.no_padding()  # batches are cut by length first

    def __call__(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        """(N, H) vectors in the order of `texts`, in batches of 2,048 padded tokens."""
        tokens = self.tokens(texts, role)
        batches = token_batches(np.array([len(ids) for ids in tokens]), CPU_TOKENS)
        found: list[NDArray[np.float32]] = []
        with progress("onnx", len(texts)) as advance:
            for batch in batches:
                found.append(self.run([tokens[i] for i in batch]))
                advance(len(batch))
        order = np.concatenate(batches)
        vectors = np.concatenate(found)
        vectors[order] = vectors.copy()
        return vectors

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids of each text with its prompt, cut to the maximum length."""
        prompted = [self.prompts.get(role, "") + text for text in texts]
        return [encoding.ids for encoding in self.tokenizer.encode_batch(prompted)]

    def run(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(B, H) vectors of one batch."""
        with self._named():
            return self.session.run([OUTPUT], self.feeds(tokens))[0]

    def _named(self) -> AbstractContextManager[None]:
        return library_errors(f"{self.file}: onnxruntime cannot run it", "export without --onnx")

    def feeds(self, tokens: Sequence[Sequence[int]]) -> Feeds:
        """What the session reads for a batch: each input (B, longest) int64."""
        shape = (len(tokens), max(map(len, tokens)))
        ids, mask = np.full(shape, self.pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, values in enumerate(tokens):
            ids[row, : len(values)], mask[row, : len(values)] = values, 1
        every = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        return {name: every[name] for name in self.inputs}


class TorchEncoder:
    """Texts -> vectors with the model itself: one plain forward pass for one text."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model

    def __call__(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        """(N, H) vectors in the order of `texts`."""
        if len(texts) != 1:
            return encode(self.model, texts, role)
        return single_encoder(self.model, role)(texts[0])


def onnxruntime() -> Any:
    """The package. Raises UserError, saying how to install it, if it or onnx is missing."""
    try:
        import onnx  # noqa: F401  (what the exporter and the quantiser write with)
        import onnxruntime
    except ImportError:
        raise UserError("--onnx needs onnx and onnxruntime: pip install 'tercet[onnx]'") from None
    return onnxruntime
