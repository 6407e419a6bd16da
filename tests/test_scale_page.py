"""What docs/scale.md tells people to type is understood: by the shell, the launcher and by us."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from tercet.configs import load
from tests.conftest import Run

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
SHELL = {  # what a shell makes of these on four nodes
    "\\\n": "",
    "$((8 * SLURM_NNODES))": "32",
    "$SLURM_NNODES": "4",
    "\\$SLURM_NODEID": "0",
    "$JOB_COMPLETION_INDEX": "0",
}


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found


def commands(program: str) -> list[list[str]]:
    """The words after `program`, wherever it is typed: in a shell, a job's script, a container."""
    pods = [document for text in blocks("yaml") for document in yaml.safe_load_all(text)]
    inside = [pod["spec"]["template"]["spec"]["containers"] for pod in pods if pod["kind"] == "Job"]
    texts = [*blocks("bash"), *(text for one in inside for box in one for text in box["args"])]
    for written, meant in SHELL.items():
        texts = [text.replace(written, meant) for text in texts]
    typed = (re.findall(rf'\b{program} ([^"\n]+)', text) for text in texts)
    return [shlex.split(words) for found in typed for words in found]


def test_scripts_are_shell() -> None:
    for script in blocks("bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("words", commands("accelerate launch"), ids=" ".join)
def test_launches_are_understood(words: list[str]) -> None:
    asked = launch_command_parser().parse_args(words)
    assert asked.module and asked.training_script == "tercet"
    assert asked.multi_gpu or (asked.use_fsdp and asked.fsdp_version == "2")
    assert asked.num_processes == 8 * (asked.num_machines or 1)
    if asked.num_machines:
        assert asked.machine_rank == 0 and asked.main_process_ip and asked.main_process_port
    verb, recipe, *told = asked.training_script_args
    assert verb in ("finetune", "mine") and recipe.endswith(".yaml")
    load("finetune", told)


def test_every_launch_is_looked_at() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(commands("accelerate launch")) == text.count("accelerate launch -")


def test_plans_are_made(run: Run, tiny_model: Path, pairs: Path) -> None:
    plans = commands("tercet plan")
    assert len(plans) == 2
    for recipe, *words in plans:
        assert recipe == "finetune.yaml"
        told = [f"data.train={pairs}" if w.startswith("data.train") else w for w in words]
        status, out, err = run("plan", "tiny", f"model.path={tiny_model}", *told)
        assert status == 0, err
        assert "4 x 8 h100" in out and ("FSDP" in out) == ("--sharded" in words)
