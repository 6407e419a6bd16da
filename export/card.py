"""The model card: written from the run's own files, so that no number in it was typed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from tercet.configs import Config

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
{{ facts["max_length"] }} tokens.
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

## How it was made

`tercet finetune` with the config below, {{ facts["steps"] }} steps.
Versions: {{ versions }}.

```yaml
{{ settings }}```

## Intended use and limits

Made to rank texts of the kind it was trained on (see the data above). It was not tested on other
languages or domains than those under Results, and like every retriever it ranks what is similar,
which is not always what is true.
"""


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

    data: what it was trained on (counts, fingerprint). facts: dimensions, max_length, prompts,
    steps. table and lines: results as `report.table` renders them. Paths of the machine it was
    trained on are cut to their last part.
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
    )


def _without_paths(value: object) -> object:
    """Absolute paths say where somebody worked, not what was done."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value
