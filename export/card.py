"""The model card: written from the run's own files, so that no number in it was typed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from tercet.configs import Config, DataConfig, StudentConfig
from tercet.export.parity import variant_rows

TEMPLATE = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, retrieval, tercet]
{%- if config.licence %}
license: {{ config.licence }}
{%- endif %}
{%- if base_model %}
base_model: {{ base_model }}
{%- endif %}
---

# {{ name }}

A bi-encoder for retrieval, {{ origin }} with Tercet.

## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/{{ name }}")
queries = model.encode_query(["..."])
documents = model.encode_document(["..."])
scores = model.similarity(queries, documents)
```

Vectors have {{ facts["dimensions"] }} dimensions, texts are cut at
{{ facts["max_length"] }} tokens. Scores are compared by {{ facts["similarity"] }}.
Prompts (`encode_query` and `encode_document` apply them): query `{{ facts["query_prompt"] }}`,
document `{{ facts["document_prompt"] }}`.

## Results
{% if table %}
{{ table }}
{% for line in lines %}
- {{ line }}
{%- endfor %}
{% else %}
No test set was scored for this card.
{% endif %}{% if dev is not none %}
Best {{ config.evaluation.metric }} on the development set{% if cut %}, with all dimensions{% endif %}: \
{{ "%.3f" | format(dev) }}.
{% endif %}
## Training data

| | |
| :-- | --: |
{%- for key, value in data.items() %}
| {{ key }} | {{ value }} |
{%- endfor %}

{% if sources %}
{%- for name, licence in sources %}
- `{{ name }}`: {{ licence or "licence not stated" }}
{%- endfor %}
{% endif %}
The fingerprint is a hash of every row: the same data gives the same one.

## How it was made

Save the config below as `config.yaml`, put the data where it says, and run
`{{ command }} config.yaml`. It trained for {{ facts["steps"] }} steps from seed
{{ config.train.seed }}{% if facts["kept_step"] %}; these are the weights after step
{{ facts["kept_step"] }}{% if dev is not none %}, the best on the dev set{% endif %}{% endif %}{% if cut %}.
Then all but the first {{ facts["dimensions"] }} dimensions were cut off (`tercet export --truncate
{{ facts["dimensions"] }}`){% endif %}.
Versions: {{ versions }}.

```yaml
{{ settings }}```

## Intended use and limits

Made to rank texts of the kind it was trained on (see the data above). It was not tested on other
languages or domains than those under Results, and like every retriever it ranks what is similar,
which is not always what is true. Texts beyond {{ facts["max_length"] }} tokens are judged by their
beginning.
"""

SECTION = """\

<!-- exported files: begin -->
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
index = faiss.IndexFlatIP({{ parity.dimensions }})  # inner products are what this model is compared by
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
<!-- exported files: end -->
"""
SERVED = """\
text-embeddings-inference (`text-embeddings-router --model-id path/to/this/folder`) finds the graph by
itself: it takes `sentence_embedding` or, before it knew of that output, pools `token_embeddings`."""
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


MADE = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, retrieval, tercet]
---

# {{ name }}

{{ how }}

{{ table }}
{% if settings %}
```yaml
{{ settings }}```
{% endif %}
It was not trained after that: measure it on your own data before you use it.
"""


def made_card(
    name: str, how: str, table: str = "", settings: Mapping[str, object] | None = None
) -> str:
    """Markdown for a model made from others without training: a cut one, or a merged one."""
    strict = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    asked = yaml.safe_dump(_without_paths(settings), sort_keys=False) if settings else ""
    return strict.from_string(MADE).render(name=name, how=how, table=table, settings=asked)


def model_card(
    config: Config,
    *,
    name: str,
    base: str,
    data: Mapping[str, object],
    facts: Mapping[str, object],
    versions: Mapping[str, str],
    base_model: str | None = None,
    teachers: Sequence[str] = (),
    table: str = "",
    lines: Sequence[str] = (),
    dev: float | None = None,
    cut: bool = False,
) -> str:
    """Markdown for the model folder's README.md.

    config: what `tercet finetune` or `distil` is to be given to repeat it. base: what the model it
    began with is called; base_model: its name on a hub; teachers: what they are called. data: what it was trained on (counts,
    fingerprint). facts: dimensions, max_length, similarity, prompts, steps, kept_step. versions:
    of the packages that trained it. table and lines: results as `report.table` renders them. dev:
    the best score of the run, if it is that of these weights. cut: whether `facts["dimensions"]`
    are fewer than were trained. Paths of the machine it was trained on are cut to their last part.
    """
    strict = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    settings = yaml.safe_dump(_without_paths(config.model_dump(mode="json")), sort_keys=False)
    return strict.from_string(TEMPLATE).render(
        config=config,
        name=name,
        base=base,
        origin=_origin(config, base, teachers),
        base_model=base_model,
        data=data,
        facts=facts,
        versions=", ".join(f"{k} {v}" for k, v in versions.items()),
        table=table,
        lines=list(lines),
        dev=dev,
        cut=cut,
        settings=settings,
        sources=_sources(config.data),
        command="tercet distil" if config.distil.active else "tercet finetune",
    )


def _origin(config: Config, base: str, teachers: Sequence[str]) -> str:
    """What was done to which model."""
    if config.distil.active and config.student != StudentConfig():
        made = f"a smaller model made of `{base}` and trained"
    else:
        made = f"fine-tuned from `{base}`"
    if teachers:
        return f"{made} to do as {' and '.join(f'`{name}`' for name in teachers)} does,"
    return f"{made} on a teacher's scores" if config.distil.active else made


def _sources(data: DataConfig) -> list[tuple[str, str | None]]:
    """Every file that was trained on, and the licence that the config states."""
    pairs = [(Path(source.path).name, source.licence) for source in data.train]
    return [*pairs, *((Path(path).name, data.corpus_licence) for path in data.corpus)]


def onnx_section(parity: Mapping[str, Any]) -> str:
    """What a card says of ONNX files: how to use them without torch, and what was measured."""
    machine = parity["machine"]
    told = f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    ways = {found.get("quantisation") for found in parity["variants"].values() if found["kept"]}
    wide = not machine["reduce_range"] and bool(ways & {"dynamic", "static"})
    strict = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return strict.from_string(SECTION).render(
        parity=parity,
        rows=variant_rows(parity["variants"]),
        served=SERVED if "token_embeddings" in parity["outputs"] else NOT_SERVED,
        wide=WIDE if wide else "",
        machine=told + ("" if machine["vnni"] else ", without VNNI (8-bit products are slow)"),
        script=SCRIPT.read_text(encoding="utf-8"),
    )


def without_section(card: str) -> str:
    """A card without the section that an earlier export added."""
    before, begin, rest = card.partition(BEGIN)
    return before.rstrip("\n") + "\n" + rest.partition(END)[2].lstrip("\n") if begin else card


def _without_paths(value: object) -> object:
    """Absolute paths say where somebody worked, not what was done."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value
