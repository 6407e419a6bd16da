"""run.jsonl for every run; Weights & Biases as well when asked, never a reason to stop."""

import json
import math
import netrc
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tercet.configs import Config
from tercet.files import write_text
from tercet.progress import say


class Tracker:
    """Writes one JSON line per logged step and hands the same values to Accelerate's trackers."""

    def __init__(self, accelerator: Accelerator, config: Config, start: int) -> None:
        self.accelerator = accelerator
        self.path = Path(config.output) / "run.jsonl"
        if accelerator.is_main_process:
            _drop_after(self.path, start)
        if config.tracking.wandb:
            self._start_wandb(config)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Record `values` after `step` finished steps; a NaN stays visible as "nan"."""
        if self.accelerator.is_main_process:
            line = {"step": step} | {key: _plain(value) for key, value in values.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        if self.accelerator.trackers:
            self.accelerator.log(values, step=step)

    def finish(self) -> None:
        """Flush and close the trackers."""
        self.accelerator.end_training()

    def _start_wandb(self, config: Config) -> None:
        settings = {
            "dir": config.output,
            "name": config.tracking.name or Path(config.output).name,
            "mode": os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline"),
        }
        try:
            self.accelerator.init_trackers(
                config.tracking.project,
                config=config.model_dump(mode="json"),
                init_kwargs={"wandb": settings},
            )
        except Exception as error:  # whatever a tracker's start can raise: the run matters more
            say(f"Weights & Biases did not start ({error}); run.jsonl is written all the same")
            self.accelerator.trackers = []


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run.jsonl; a last line torn by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def _drop_after(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint that the run resumes from."""
    kept = [line for line in read_log(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN; null would hide it
    return value


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
