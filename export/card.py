"""The model card: written from the run's own files, so that no number in it was typed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from tercet.configs import Config
from tercet.export.parity import variant_rows

TEMPLATE = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, retrieval, tercet]
{%- if config.licence %}
license: {{ config.licence }}
{%- endif %}
{%- if hub_name %}
base_model: {{ hub_name }}
{%- endif %}
---

# {{ name }}

A bi-encoder for retrieval, fine-tuned from `{{ base }}` with Tercet.

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
Best {{ config.evaluation.metric }} on the development set: {{ "%.3f" | format(dev) }}.
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
{{ facts["kept_step"] }}, the best on the dev set{% endif %}.
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

## Files, measured

Each file against the checkpoint it was made from, on {{ parity.texts.compared }} texts of all
lengths: cosine of the vectors, nDCG@10 with its 95 % interval, one query asked at a time, texts in
batches.
{{ machine }}. All figures are in `parity.json`.

| {{ rows[0] | join(" | ") }} |
| :-- |{% for _ in range(rows[0] | length - 1) %} --: |{% endfor %}
{%- for row in rows %}
| {{ row.values() | join(" | ") }} |
{%- endfor %}
<!-- exported files: end -->
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


HUB_NAMES = {"embedded": "sentence-transformers/all-MiniLM-L6-v2"}


def model_card(
    config: Config,
    *,
    name: str,
    base: str,
    data: Mapping[str, object],
    facts: Mapping[str, object],
    versions: Mapping[str, str],
    table: str = "",
    lines: Sequence[str] = (),
    dev: float | None = None,
) -> str:
    """Markdown for the model folder's README.md.

    data: what it was trained on (counts, fingerprint). facts: dimensions, max_length, similarity,
    prompts, steps. table and lines: results as `report.table` renders them. Paths of the machine
    it was trained on are cut to their last part.
    """
    strict = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    settings = yaml.safe_dump(_without_paths(config.model_dump(mode="json")), sort_keys=False)
    return strict.from_string(TEMPLATE).render(
        config=config,
        name=name,
        base=base,
        hub_name=HUB_NAMES.get(config.model.path),
        data=data,
        facts=facts,
        versions=", ".join(f"{k} {v}" for k, v in versions.items()),
        table=table,
        lines=list(lines),
        dev=dev,
        settings=settings,
        sources=[(Path(source.path).name, source.licence) for source in config.data.train],
        command="tercet distil" if config.distil.teacher else "tercet finetune",
    )


def onnx_section(parity: Mapping[str, Any]) -> str:
    """What a card says of ONNX files: how to use them without torch, and what was measured."""
    machine = parity["machine"]
    told = f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    strict = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return strict.from_string(SECTION).render(
        parity=parity,
        rows=variant_rows(parity["variants"]),
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
