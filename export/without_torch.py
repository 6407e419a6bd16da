"""python encode.py FOLDER: vectors with onnxruntime, tokenizers and NumPy alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
prompts = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))["prompts"]
tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))  # cuts and pads
session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")


def encode(texts, role):  # role: "query" or "document"
    found = tokenizer.encode_batch([prompts.get(role, "") + text for text in texts])
    read = np.array([(e.ids, e.attention_mask, e.type_ids) for e in found], dtype=np.int64)
    feeds = {given.name: read[:, i] for i, given in enumerate(session.get_inputs())}
    return np.asarray(session.run(["sentence_embedding"], feeds)[0])


if __name__ == "__main__":
    print(encode(["how to open a file"], "query") @ encode(["open(path)"], "document").T)
