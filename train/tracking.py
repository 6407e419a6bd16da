"""run.jsonl for every run; Weights & Biases as well when asked. Neither is a reason to stop."""

import json
import math
import netrc
import os
import secrets
import threading
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tercet.configs import Config
from tercet.files import write_text
from tercet.progress import say

WAIT = 60.0  # seconds that Weights & Biases gets to send the rest when the run is over
WANDB_ID = "wandb.id"  # file in the output folder


class Tracker:
    """Writes one JSON line per logged step and hands the same values to Accelerate's trackers."""

    def __init__(self, accelerator: Accelerator, config: Config, start: int) -> None:
        self.accelerator = accelerator
        self.path = Path(config.output) / "run.jsonl"
        self.said: set[str] = set()
        self.torn = False  # the last line may be half written
        if accelerator.is_main_process:
            try:
                _drop_after(self.path, start)
            except OSError as error:
                self._not_written(error)
        if config.tracking.wandb:
            self._start_wandb(config)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Record `values` after `step` finished steps; a NaN stays visible as "nan"."""
        if self.accelerator.is_main_process:
            line = {"step": step} | {key: _plain(value) for key, value in values.items()}
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n" * self.torn + json.dumps(line, allow_nan=False) + "\n")
                self.torn = False
            except OSError as error:
                self._not_written(error)
        if self.accelerator.trackers:
            try:
                self.accelerator.log(values, step=step)
            except Exception as error:  # whatever a tracker can raise: the run matters more
                say(f"Weights & Biases failed ({error}) and is left alone from now on")
                self.accelerator.trackers = []

    def finish(self) -> None:
        """Flush and close the trackers, for a minute at most."""
        for tracker in self.accelerator.trackers:
            closing = threading.Thread(target=_close, args=(tracker,), daemon=True)
            closing.start()
            closing.join(WAIT)
            if closing.is_alive():
                say(f"Weights & Biases has not taken everything within {WAIT:.0f} s; `wandb sync` "
                    "sends what is below wandb/ in the output folder")  # fmt: skip
        self.accelerator.trackers = []

    def _start_wandb(self, config: Config) -> None:
        settings: dict[str, Any] = {
            "dir": config.output,
            "name": config.tracking.name or Path(config.output).name,
            "mode": os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline"),
            "resume": "allow",
        }
        try:
            if self.accelerator.is_main_process:
                from wandb import Settings

                settings["id"] = _run_id(Path(config.output))
                settings["settings"] = Settings(init_timeout=30)
            self.accelerator.init_trackers(
                config.tracking.project,
                config=config.model_dump(mode="json"),
                init_kwargs={"wandb": settings},
            )
        except Exception as error:  # whatever a tracker's start can raise: the run matters more
            say(f"Weights & Biases did not start ({error}); run.jsonl is written all the same")
            self.accelerator.trackers = []

    def _not_written(self, error: OSError) -> None:
        self.torn = True
        reason = error.strerror or str(error)
        if reason not in self.said:
            self.said.add(reason)
            say(f"{self.path}: cannot be written ({reason}); training goes on without these lines")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run.jsonl; one that a crash has torn is left out.

    None of what is no file: a pipe would be waited for, and some devices never end.
    """
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found


def _drop_after(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint that the run resumes from.

    Also its evaluation, which came after it was written and will be repeated.
    """
    kept = [line for line in read_log(path) if line["step"] < step or _trained(line, step)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _trained(line: dict[str, Any], step: int) -> bool:
    return line["step"] == step and not any(key.startswith("dev/") for key in line)


def _run_id(folder: Path) -> str:
    """The same for all parts of a run, so that a resumed one goes on in the same curves."""
    path = folder / WANDB_ID
    if not path.exists():
        write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def _close(tracker: Any) -> None:
    try:
        tracker.finish()
    except Exception as error:  # as above
        say(f"Weights & Biases failed at the end ({error}); run.jsonl is complete")


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
