"""Every setting of a run: frozen, typed, and refused where it is made if it cannot be right.

A section belongs to the stage that reads it. The YAML files beside this module show each key with
its meaning; defaults live here and nowhere else.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tercet.secret import holds_secret

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]  # NumPy takes no negative ones


def _place(value: str) -> str:
    """A path with `~` as a shell reads it, which leaves it alone behind most `key=`."""
    if "\0" in value or not value.strip():
        raise ValueError("should be the path of a file or folder")
    return os.path.expanduser(value)


Place = Annotated[str, AfterValidator(_place)]
SECRET = "secret"  # pydantic's name of the error
SIF = 1e-3  # as in its paper (Arora et al. 2017)
LAYERS = re.compile(r"all|even|(first|last|every):[1-9][0-9]*")
Format = Literal["auto", "jsonl", "csv", "parquet", "dataset", "beir"]
Direction = Literal[
    "query_to_document", "document_to_query", "query_to_query", "document_to_document"
]


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )


class Prompts(Section):
    """Text put before every query and every document; null keeps what the checkpoint says."""

    query: str | None = None
    document: str | None = None


class ModelConfig(Section):
    """The encoder to start from."""

    path: str = "embedded"  # "embedded", a folder, or a hub name
    pooling: Literal["auto", "mean", "cls", "lasttoken", "max"] = "auto"
    normalize: bool | None = None  # null: unit vectors unless the model is compared by dot
    max_length: Count | None = None  # tokens, special ones included; null: the checkpoint's own
    prompts: Prompts = Prompts()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the trained weights
    trust_remote_code: bool = False
    allow_pickle: bool = False  # weights that are not safetensors: torch's restricted unpickler


class Columns(Section):
    """Which column of a file plays which role; null means the file has no such column."""

    query: str = "query"
    positive: str = "positive"  # a text, or a list of texts
    negative: str | None = None  # a text, or a list of texts
    query_id: str | None = None
    positive_id: str | None = None  # an id, or a list as long as the positives
    negative_id: str | None = None
    positive_score: str | None = None  # a teacher's, or a list as long as the positives
    negative_score: str | None = None

    @model_validator(mode="after")
    def _scores_of_something(self) -> "Columns":
        if self.negative_score is not None and self.negative is None:
            raise ValueError("negative_score needs the column of the negatives: columns.negative")
        return self


class Source(Section):
    """One file or folder of training pairs. Each batch is drawn from a single source."""

    path: Place
    format: Format = "auto"  # auto: by the name's ending, or by what the folder holds
    split: str = "train"  # which qrels/<split>.tsv of a BEIR folder
    columns: Columns = Columns()
    ignore: tuple[str, ...] = ()  # columns that may be there and are not read
    other_splits: bool = False  # also documents that answer only queries of a folder's other splits
    licence: str | None = None  # of the data, for the model's card


def _section(value: Any) -> Any:
    """A path stands for a section that has one."""
    return {"path": value} if isinstance(value, str) else value


def _sections(value: Any) -> Any:
    """The same of several; one section needs no list."""
    values = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(values, list | tuple):
        return values
    return [_section(item) for item in values]


Sources = Annotated[tuple[Source, ...], BeforeValidator(_sections)]


class DataConfig(Section):
    """What to train on, and what must stay unseen."""

    train: Sources = ()
    corpus: tuple[Place, ...] = ()  # files of documents without labels, for distillation
    queries: tuple[Place, ...] = ()  # files of queries without labels, for distillation
    corpus_licence: str | None = None  # of those texts, for the model's card
    mined: Place | None = None  # a mined set (Parquet) whose negatives join the rows by query id
    positives_per_row: Count | None = None  # drawn anew each epoch; null: all of them
    negatives_per_row: Annotated[int, Field(ge=0)] = 1  # drawn anew each epoch
    source_alpha: Share = 0.5  # sources are drawn with probability proportional to rows ** alpha
    held_out: tuple[Place, ...] = ()  # BEIR folders whose test texts are looked for in training
    max_overlap: Share = 0.01  # warn when more of the held-out texts than this are in training


class BatchConfig(Section):
    """The global batch defines the run; how it is cut up changes only speed and memory."""

    size: Count = 128  # rows over all processes
    micro_tokens: Count | Literal["auto"] = "auto"  # padded tokens in one forward pass
    keep_tokens: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"  # graphs kept, per process


class FrozenModel(Section):
    """A model that steers training and is not trained, and how it reads texts."""

    path: str  # "embedded", a folder, or a hub name
    prompts: Prompts = Prompts()  # put before the texts; null: the model's own
    max_length: Count | None = None  # tokens, special ones included; null: the model's own
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of its weights
    trust_remote_code: bool = False  # run code that comes with it


class FalseNegatives(Section):
    """Which in-batch negatives are left out because they may well be positives."""

    known: bool = True  # every positive of the query anywhere in the training data
    margin: float | None = None  # drop scores above the positive's score plus this
    # a model whose opinion decides (GISTEmbed, arXiv:2402.16829); a path stands for a section
    guide: Annotated[FrozenModel | None, BeforeValidator(_section)] = None
    guide_margin: float = 0.0  # drop if guide score > guide score of the positive minus this
    guide_relative: bool = False  # the margin is a share of the positive's guide score


class Matryoshka(Section):
    """Also train the first d dimensions (arXiv:2205.13147)."""

    dims: Annotated[tuple[Count, ...], Field(min_length=1)]
    weights: tuple[Positive, ...] | None = None  # null: 1 for each

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> "Matryoshka":
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"has {len(self.weights)} weights for {len(self.dims)} dims")
        if len(set(self.dims)) != len(self.dims):
            raise ValueError("names a dimension twice")
        return self


class LossConfig(Section):
    """InfoNCE and its options."""

    temperature: Positive = 0.05  # cosine scores span 2.0, so logits span 2 / temperature
    learn_temperature: bool = False
    temperature_learning_rate: Positive = 1e-3  # of its logarithm, under train's schedule
    directions: tuple[Direction, ...] = ("query_to_document",)
    partition: Literal["mean", "joint"] = "mean"  # a softmax per direction, or one over all
    in_batch_negatives: bool = True  # false: only the row's own negatives
    hardness: NotNegative = 0.0  # alpha of arXiv:2503.04812: adds alpha * cos to negative logits
    false_negatives: FalseNegatives = FalseNegatives()
    matryoshka: Matryoshka | None = None

    @model_validator(mode="after")
    def _directions_make_sense(self) -> "LossConfig":
        if "query_to_document" not in self.directions:
            raise ValueError("directions must include query_to_document")
        if len(set(self.directions)) != len(self.directions):
            raise ValueError("directions names one twice")
        within = {"query_to_query", "document_to_document"} & set(self.directions)
        if within and self.partition != "joint":
            raise ValueError(f"directions {sorted(within)} hold no positive: set partition: joint")
        if not self.in_batch_negatives and len(self.directions) > 1:
            raise ValueError("in_batch_negatives: false allows query_to_document only")
        return self


class RelationalConfig(Section):
    """The weights within the relational term, with the defaults of its paper (arXiv:2412.19048)."""

    cosine: NotNegative = 10.0  # of 1 - cosine; left out where student and teacher differ in width
    gram: NotNegative = 200.0  # of the squared difference of all similarities
    relative: NotNegative = 20.0  # of the hinge over pairs of similarities
    margin: NotNegative = 0.015  # of that hinge


class DistilConfig(Section):
    """Learn from a teacher's vectors: the weight of each term, and what it compares."""

    teacher: tuple[FrozenModel, ...] = ()  # null: no distillation; a path stands for a section
    combine: Literal["concatenate", "average"] = "concatenate"  # several teachers' unit vectors
    projection: bool | None = None  # a Dense layer to the teacher's width; null: if align needs it
    infonce: NotNegative = 0.0  # the loss of the section above
    align: NotNegative = 1.0  # to give the teacher's own vectors (LEAF, arXiv:2509.12539)
    relational: NotNegative = 0.0  # to call the same texts similar (Jasper, arXiv:2412.19048)
    relations: RelationalConfig = RelationalConfig()  # of which it is made
    listwise_kl: NotNegative = 0.0  # to rank a row's documents alike (arXiv:1503.02531)
    margin_mse: NotNegative = 0.0  # to set positives apart from negatives alike (arXiv:2010.02666)
    scores: Literal["teacher", "data"] = "teacher"  # of the last two: its cosines, or given ones
    student_temperature: Positive | None = None  # listwise_kl; null: that of the loss
    teacher_temperature: Positive | None = None  # listwise_kl; null: 0.05 of cosines, 1 of others
    margin_temperature: Positive = 1.0  # margin_mse: the student's margins reach 2 / this
    calibration: Literal["none", "min_max", "standard"] = "none"  # listwise_kl: of its lists

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_needs_no_list(cls, value: Any) -> Any:
        return () if value is None else _sections(value)

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "DistilConfig":
        of_vectors, of_scores = self.align or self.relational, self.listwise_kl or self.margin_mse
        if self.teacher and not of_vectors and not of_scores:
            raise ValueError("a teacher is named and every weight of it is 0")
        if self.scores == "data" and not of_scores:
            raise ValueError(
                "scores: data are learnt by listwise_kl and margin_mse; give one a weight"
            )
        if self.scores == "data" and of_vectors and not self.teacher:
            raise ValueError(
                "align and relational learn a teacher's vectors; name a teacher or set both to 0"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether there is a teacher: a model, or scores that came with the data."""
        return bool(self.teacher) or self.scores == "data"

    @property
    def score_temperature(self) -> float:
        """What the teacher's scores are divided by; logits need no sharpening, cosines do."""
        return self.teacher_temperature or (1.0 if self.scores == "data" else 0.05)

    @property
    def needs_pairs(self) -> bool:
        """Whether a term compares a query with its documents; the others look at texts alone."""
        return not self.active or any((self.infonce, self.listwise_kl, self.margin_mse))


class TrainConfig(Section):
    """The loop."""

    epochs: Positive = 1.0
    steps: Count | None = None  # overrides epochs
    learning_rate: Positive = 2e-5
    schedule: Literal["linear", "cosine", "wsd", "cyclic", "constant"] = "linear"
    warmup: Share = 0.1  # share of all steps; cyclic: of each cycle
    decay: Share = 0.2  # wsd only: share of all steps spent coming down
    cycles: Count = 3  # cyclic only: so many linear schedules, one after the other
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the weights' running mean
    weight_decay: NotNegative = 0.01  # biases and normalisation weights are exempt
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    max_grad_norm: Positive | None = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None  # null: as launched, else "no"
    compile: bool = False  # torch.compile with dynamic shapes
    dropout: Share | None = None  # null: the checkpoint's own
    seed: Seed = 12
    log_every: Count = 10
    eval_every: Count | None = None  # null: ten times in the run at most
    save_every: Count | None = None  # null: ten times at most, 50 steps apart
    keep: Count = 2  # newest checkpoints that stay, besides the best
    on_nonfinite: Literal["stop", "skip"] = "stop"

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        return "no" if value is False else value


class RescoreConfig(Section):
    """A cross-encoder's opinion of the candidates, as a probability that each is an answer."""

    model: str | None = None  # a CrossEncoder: a folder or a hub name; null: none is asked
    depth: Count = 30  # unlabelled candidates scored per query; those after them are not taken
    max_length: Count | None = None  # tokens of query and document together; null: its own
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    calibration: Literal["auto", "none"] = "auto"  # auto: sigmoid of the logit; none: its output
    veto_margin: float | None = 0.0  # drop what it puts above the lowest positive plus this
    veto_above: Share | None = None  # drop what it gives more than this
    relabel: bool = False  # make positives of what is above the lowest positive and this:
    relabel_above: Share = 0.95
    trust_remote_code: bool = False


class MiningConfig(Section):
    """Hard negatives: how many, found how, from which ranks, and what rules one out."""

    negatives: Count = 4  # kept per query
    # "model", "bm25", other models (a path, or a section like `model`); several: ranks are fused
    sources: tuple[str | ModelConfig, ...] = ("model",)
    index: Literal["exact", "flat", "hnsw", "ivf_flat", "ivf_pq"] = "exact"  # of dense searches
    depth: Count = 100  # candidates looked at per query
    known: Sources = ()  # more pairs whose positives are no negatives: other splits, other files
    held_out: bool = False  # true: also what only data.held_out and the dev folder ask for
    near_duplicate: Annotated[float, Field(ge=-1, le=1)] | None = None  # drop cosines to a positive
    skip: Annotated[int, Field(ge=0)] = 0  # the first ranks left out
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: NotNegative | None = None  # keep scores below the lowest positive's minus this
    relative_margin: Share | None = 0.95  # keep scores below this share of the lowest positive's
    sampling: Literal["top", "random", "softmax"] = "top"
    temperature: Positive = 0.05  # of softmax sampling
    too_few: Literal["keep", "drop", "fill"] = "keep"  # when fewer than `negatives` are fit
    seed: Seed = 12
    refresh_every: Count | None = None  # finetune mines anew each so many steps; null: never
    rescore: RescoreConfig = RescoreConfig()

    @field_validator("sources", mode="before")
    @classmethod
    def _one_needs_no_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Mapping)) else value

    @property
    def source_names(self) -> tuple[str, ...]:
        """Of each source "model", "bm25" or another model's path."""
        return tuple(s if isinstance(s, str) else s.path for s in self.sources)

    @model_validator(mode="after")
    def _leaves_something(self) -> "MiningConfig":
        if not self.sources or len(set(self.source_names)) != len(self.sources):
            raise ValueError("sources must name at least one, and none twice")
        if self.skip >= self.depth:
            raise ValueError(f"skip {self.skip} leaves nothing of depth {self.depth}; lower it")
        low, high = self.min_score, self.max_score
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_score {low} is above max_score {high}; nothing can be between")
        judged = self.rescore.depth if self.rescore.model else self.depth
        most = min(self.depth - self.skip, judged)
        if self.negatives > most and self.too_few != "fill":
            raise ValueError(
                f"negatives {self.negatives} are more than the {most} candidates that depth, skip "
                "and rescore.depth leave; change one of them, or say too_few: fill"
            )
        if self.rescore.relabel and self.rescore.model is None:
            raise ValueError("rescore.relabel needs rescore.model")
        return self


class Scratch(Section):
    """The shape of a student that starts from random weights (a BERT)."""

    layers: Count = 3
    width: Count = 384
    heads: Count = 12

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "Scratch":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads")
        return self


class StudentConfig(Section):
    """A smaller model made from `model`."""

    kind: Literal["cut", "static", "scratch"] = "cut"
    vocabulary: Count | Literal["used"] | None = None  # tokens that stay; null: all
    characters: Literal["all", "used"] = "all"  # which single characters stay whatever the count
    layers: str | tuple[int, ...] = "all"  # cut: which transformer layers stay, counted from 0
    dims: Count | None = None  # cut, static: of the vectors, by PCA; null: the model's
    centre: bool = True  # static: take the mean of all token vectors off each
    sif: NotNegative = SIF  # static: weight of a token is sif / (sif + its share); 0: all weigh 1
    scratch: Scratch = Scratch()  # scratch: its shape
    corpus: tuple[Place, ...] = ()  # files of texts for counts and PCA; none: those of data.train

    @field_validator("corpus", mode="before")
    @classmethod
    def _one_file_needs_no_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _layers_make_sense(cls, value: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(value, str) and not LAYERS.fullmatch(value):
            raise ValueError("should be all, even, first:3, last:3, every:2 or a list of layers")
        if not isinstance(value, str) and len(set(value)) != len(value):
            raise ValueError("names a layer twice")
        return value

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> "StudentConfig":
        if self.kind != "cut" and self.layers != "all":
            raise ValueError(f"layers are chosen for kind: cut, not for {self.kind}")
        if self.kind == "scratch" and self.dims is not None:
            raise ValueError("dims are of kinds cut and static; set scratch.width")
        if self.kind != "scratch" and self.scratch != Scratch():
            raise ValueError(f"scratch is the shape of kind: scratch, not of {self.kind}")
        if self.kind != "static" and (self.sif, self.centre) != (SIF, True):
            raise ValueError(f"sif and centre are of kind: static, not of {self.kind}")
        if self.vocabulary is None and self.characters != "all":
            raise ValueError("characters are for a vocabulary that is cut: set student.vocabulary")
        return self

    @property
    def needs_texts(self) -> bool:
        """Whether what is asked depends on a corpus."""
        return self.kind == "static" or bool(self.vocabulary) or self.dims is not None


class EvaluationConfig(Section):
    """What is measured during the run and after it."""

    dev: Place | None = None  # a BEIR folder
    dev_split: str = "dev"
    metric: str = "ndcg@10"  # decides which checkpoint is best
    batch_tokens: Count | None = None  # padded tokens in one forward pass; null: by device


class TrackingConfig(Section):
    """run.jsonl is always written; Weights & Biases as well if asked."""

    wandb: bool = False  # offline when nobody is logged in
    project: str = "tercet"
    name: str | None = None


class Config(Section):
    """One run, whole."""

    output: Place
    overwrite: bool = False
    licence: str | None = None  # of the trained model, for its card
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    distil: DistilConfig = DistilConfig()
    train: TrainConfig = TrainConfig()
    mining: MiningConfig = MiningConfig()
    student: StudentConfig = StudentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _no_secrets(self) -> "Config":
        """It is written to the output, to checkpoints and to the trackers."""
        for key, text in _texts(self):
            if holds_secret(text):
                complaint = "{key} holds a key or token, which would be saved; "
                complaint += "leave it in the environment"
                raise PydanticCustomError(SECRET, complaint, {"key": key})
        return self


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a section with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Section):
        for name, part in value:
            yield from _texts(part, f"{key}.{name}" if key else name)
    elif isinstance(value, tuple):
        for part in value:
            yield from _texts(part, key)
