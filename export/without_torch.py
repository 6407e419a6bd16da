"""python encode.py FOLDER: vectors with onnxruntime, tokenizers and NumPy alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
settings = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))  # cuts and pads
session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")


def encode(texts, role):  # role: "query" or "document"
    encoded = tokenizer.encode_batch([settings["prompts"].get(role, "") + text for text in texts])
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    feeds = {
        given.name: np.array([getattr(e, fields[given.name]) for e in encoded], dtype=np.int64)
        for given in session.get_inputs()
    }
    return np.asarray(session.run(["sentence_embedding"], feeds)[0])


if __name__ == "__main__":
    print(encode(["how to open a file"], "query") @ encode(["open(path)"], "document").T)
