"""What the parts of benchmarks.distillation share: places, collections, models, scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from benchmarks.collections import contents, cut_by, write_halves, write_with_dev
from tercet import stages
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask
from tercet.evaluation import MAIN_METRIC
from tercet.models import default_device, load_encoder, max_length
from tercet.models.layers import layer_count

CODE, DEBIAN = "code_nl2bash", "debian_desc"
OTHERS = ("scifact", "cranfield", "stackfaq", DEBIAN)
PAIRS = "stsb_en/test.tsv"  # sentences that people have scored
GUARD_DOCUMENTS = 800  # besides the answers, of a collection that guards the choice of a merge
HASTY = "batch.micro_tokens=2048"  # fits a CPU's caches


@dataclass(frozen=True)
class Work:
    """Where things are, and how much is done."""

    shared: Path
    folder: Path
    small: int | None
    rounds: int
    dims: Sequence[int] = (128,)

    def whole(self, name: str) -> Path:
        """A collection as it is: train and test."""
        return self.data(name) if self.small else self.shared / name

    def data(self, name: str) -> Path:
        """A collection whose training split has given a part to a dev split."""
        folder = self._cut(name) / name
        if not folder.exists():
            write_with_dev(self.shared / name, folder, self.small)
        return folder

    def halves(self, name: str) -> tuple[Path, Path]:
        """Queries of a collection to choose by, and others to report."""
        folder = self._cut(name) / name
        choose, report = (folder.with_name(f"{name}-{half}") for half in ("choose", "report"))
        if not report.exists():
            write_halves(self.shared / name, folder, GUARD_DOCUMENTS, self.small)
        return choose, report

    def run(self, name: str) -> Path:
        """Beside which the folder of a run is; its settings are to say so."""
        return self.folder / "runs" / name

    def step(self, name: str, *how: str) -> Path:
        """The file of one try."""
        return self.folder / "tries" / f"{name}-{'-'.join(how)}.json"

    def _cut(self, name: str) -> Path:
        how = contents(self.shared / name), GUARD_DOCUMENTS, self.small
        return self.folder / f"data-{cut_by(*how)}"


def common(data: Path, run: Path) -> list[str]:
    """Settings of every run."""
    return [f"output={run}", f"data.train={data}", HASTY]


def encoder(path: str) -> SentenceTransformer:
    """A model as it was exported."""
    return load_encoder(ModelConfig(path=path)).to(default_device())


def at_one_length(models: Mapping[str, SentenceTransformer]) -> Mapping[str, SentenceTransformer]:
    """The same models, every transformer reading as many tokens as the first: for timing alone.

    Else one that was trained on the beginnings of texts would be fast for reading no more.
    """
    longest = max_length(next(iter(models.values())))
    for model in models.values():
        if layer_count(model):
            model.max_seq_length = longest
    return models


def test_scores(
    work: Work, name: str, model: SentenceTransformer, task: RetrievalTask
) -> dict[str, float]:
    """nDCG@10 of each query, with vectors that are kept for the next model beside it."""
    result = stages.evaluate_model(model, name, task, work.folder / "evaluated")
    return result.scores[MAIN_METRIC]
