"""What a card says of exported files: size, use without torch, and what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from sentence_transformers import SentenceTransformer

from tercet.export.parity import variant_rows

SIZE = """\
## Size

{parameters:,} parameters, {megabytes:,.1f} MB. Vectors have {width} dimensions. {speed}
"""
SPEED = "What a query takes and how many texts a second are encoded stands under Files, measured."
NO_SPEED = "Its speed was not measured here; `tercet export --onnx` does, in torch and in ONNX."
SECTION = """\

## Without PyTorch

`onnx/model.onnx` is one graph from token ids to the final vector (opset {{ parity.opset }}; inputs
{{ parity.inputs | join(", ") }}; output `sentence_embedding`), and `onnx/tokenizer.json` cuts and
pads by itself. With `pip install onnxruntime tokenizers`:

```python
{{ script }}```

{{ served }}
{{ wide }}
## In a search engine

With FAISS (`pip install faiss-cpu`):

```python
import faiss
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
documents = ["open(path)", "sorted(names)"]
index = faiss.IndexFlatIP({{ parity.dimensions }})  # inner products: what this model is made for
index.add(model.encode_document(documents))
scores, positions = index.search(model.encode_query(["how to open a file"]), 2)
print([documents[i] for i in positions[0]])
```

With a vector database, here Milvus in a file of its own (`pip install pymilvus milvus-lite`):

```python
from pymilvus import MilvusClient
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
documents = ["open(path)", "sorted(names)"]
rows = zip(documents, model.encode_document(documents))
client = MilvusClient("documents.db")  # or a server's address
client.create_collection("documents", dimension={{ parity.dimensions }}, metric_type="IP")
client.insert("documents", [{"id": i, "text": t, "vector": v} for i, (t, v) in enumerate(rows)])
query = model.encode_query(["how to open a file"])
(hits,) = client.search("documents", data=list(query), limit=2, output_fields=["text"])
print([hit["entity"]["text"] for hit in hits])
```

## Files, measured

Each file against the checkpoint it was made from, on {{ parity.texts.compared }} texts of all
lengths: cosine of the vectors, the largest difference of a component, nDCG@10 with its 95 %
interval, that of the checkpoint and the paired change, one query asked at a time, texts in batches.
{{ machine }}. All figures are in `parity.json`.

| {{ rows[0] | join(" | ") }} |
| :-- |{% for _ in range(rows[0] | length - 1) %} --: |{% endfor %}
{%- for row in rows %}
| {{ row.values() | join(" | ") }} |
{%- endfor %}
"""
SERVED = """\
text-embeddings-inference (`text-embeddings-router --model-id path/to/this/folder`) finds the graph
by itself: it takes `sentence_embedding`, or in older versions pools `token_embeddings`. It puts no
prompt before a text unless told to (`--default-prompt-name`, or `prompt_name` in a request)."""
NOT_SERVED = """\
The graph gives nothing else, so text-embeddings-inference cannot serve it with its ONNX backend,
except, if this is a transformer, in the versions that take `sentence_embedding`."""
WIDE = """
`onnx/model_int8.onnx` uses all 8 bits of its weights, which is right for the processor it was made
on. On an x86 processor without VNNI sums of such products overflow and vectors go wrong: export
again on one.
"""
BEGIN, END = "<!-- exported files: begin -->", "<!-- exported files: end -->"
SCRIPT = Path(__file__).with_name("without_torch.py")


def exported_section(model: SentenceTransformer, parity: Mapping[str, Any]) -> str:
    """Markdown between two marks: the model's size, and all of parity.json unless it is empty.

    A README of the model's own knows nothing of a truncation: the width is told here.
    """
    weights = list(model.parameters())
    size = SIZE.format(
        parameters=sum(w.numel() for w in weights),
        megabytes=sum(w.numel() * w.element_size() for w in weights) / 1e6,
        width=model.get_embedding_dimension(),
        speed=SPEED if parity else NO_SPEED,
    )
    return f"\n{BEGIN}\n{size}{onnx_section(parity) if parity else ''}{END}\n"


def onnx_section(parity: Mapping[str, Any]) -> str:
    """Markdown made of what parity.json holds."""
    machine = parity["machine"]
    told = f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    slow = ", without VNNI (8-bit products are slow)" if machine["reduce_range"] else ""
    ways = {found.get("quantisation") for found in parity["variants"].values() if found["kept"]}
    wide = not machine["reduce_range"] and bool(ways & {"dynamic", "static"})
    strict = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return strict.from_string(SECTION).render(
        parity=parity,
        rows=variant_rows(parity["variants"]),
        served=SERVED if "token_embeddings" in parity["outputs"] else NOT_SERVED,
        wide=WIDE if wide else "",
        machine=told + slow,
        script=SCRIPT.read_text(encoding="utf-8"),
    )


def without_section(card: str) -> str:
    """A card without the section that an earlier export added."""
    before, begin, rest = card.partition(BEGIN)
    return before.rstrip("\n") + "\n" + rest.partition(END)[2].lstrip("\n") if begin else card
