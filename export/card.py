"""The model card: written from the run's own files, so that no number in it was typed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from tercet.configs import Config, DataConfig, StudentConfig

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
Best {{ config.evaluation.metric }} on the development set{{ ", with all dimensions" if cut }}: \
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
{{ facts["kept_step"] }}{{ ", the best on the dev set" if dev is not none }}{% endif %}{% if cut %}.
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
    began with is called; base_model: its name on a hub; teachers: what they are called. data: what
    it was trained on (counts, fingerprint). facts: dimensions, max_length, similarity, prompts,
    steps, kept_step. versions: of the packages that trained it. table and lines: results as
    `report.table` renders them. dev: the best score of the run, if it is that of these weights.
    cut: whether `facts["dimensions"]` are fewer than were trained. Paths of the machine it was
    trained on are cut to their last part.
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


def _without_paths(value: object) -> object:
    """Absolute paths say where somebody worked, not what was done."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value
