"""Hard negatives mined again inside the run, with its current weights.

Xiong et al. 2021 (ANCE, arXiv:2007.00808): negatives that were hard for the first weights are
easy for later ones. Every round is a file of its own, so that a checkpoint can name the one it
trained on; a run that goes on from it reads the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from tercet.data import TrainingSet, with_mined
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.files import sha256
from tercet.processes import on_any
from tercet.progress import say
from tercet.train.polite import stopped
from tercet.train.rows import batches_of, refuse_unscored
from tercet.train.run import Run
from tercet.train.saving import save
from tercet.train.shards import fill

# Encoder, rows, positions of the queries to mine for, file to write, round. All processes call it.
Remine = Callable[[SentenceTransformer, TrainingSet, Indices, Path, int], object]


def refresher(remine: Remine, rows: TrainingSet, every: int) -> Callable[[Run], None]:
    """What the loop calls before each step: mines anew if `every` steps have passed.

    Only the queries of the steps up to the next round are mined for. The first round comes
    before the first step, unless the run begins with a mined set (data.mined). Steps that were
    added since a round, when the run went on, get a round of their own.
    """

    def refresh(run: Run) -> None:
        begun_with = run.step == 0 and run.config.data.mined is not None
        mined_for = run.mined is None or run.step < run.mined["until"]
        if begun_with or (run.step % every and mined_for):
            return
        steps = range(run.step, min((run.step // every + 1) * every, run.steps))
        if run.step > run.saved:
            save(run)  # mining may take hours, and a signal in it is heard after it
        if on_any(run.asked_to_stop()):  # the others would tell only in the next step
            raise stopped(run.step, run.steps)
        drawn = np.unique(np.concatenate([run.batches.order.batch(step)[0] for step in steps]))
        asked = np.unique(rows.row_query[drawn])
        path = run.rounds / f"step-{run.step:08d}" / "mined.parquet"
        name = str(path.relative_to(run.config.output))
        say(f"step {run.step}: mining {len(asked)} queries anew with the current weights")
        fill(run.whole, run.encoder)
        place = run.whole.device
        encoder = run.whole.to(run.accelerator.device)
        remine(encoder, rows, asked, path, run.step // every)
        run.whole.to(place)
        run.accelerator.wait_for_everyone()
        use(run, rows, name, steps.stop)
        if run.config.distil.scores == "data":  # own negatives that are held out have no score
            refuse_unscored(run.batches.data, drawn)

    return refresh


def use(run: Run, rows: TrainingSet, name: str, until: int, hashed: str | None = None) -> None:
    """Take the negatives of a mined set below the output folder for the steps before `until`.

    Raises UserError if it is not there any more, or not what it was when `hashed`.
    """
    path = Path(run.config.output) / name
    if not path.resolve().is_relative_to(Path(run.config.output).resolve()):
        raise UserError(f"the checkpoint of step {run.step} names a mined set elsewhere: {name}")
    if not path.is_file() or hashed not in (None, sha256(path)):
        raise UserError(
            f"{path}: missing or changed, and the checkpoint of step {run.step} was trained on it; "
            "put it back, or start afresh with overwrite=true"
        )
    run.batches = batches_of(run.config, with_mined(rows, path, some=True))
    run.mined = {"file": name, "sha256": sha256(path), "until": until}


def resume(run: Run, rows: TrainingSet, state: dict[str, Any]) -> None:
    """Go on with the mined set that a checkpoint names, if it names one."""
    if mined := state["mined"]:
        use(run, rows, mined["file"], mined["until"], mined["sha256"])
