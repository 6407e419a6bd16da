"""What students keep of their teacher: quality, size and speed in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tercet.configs import ModelConfig
from tercet.data import read_task
from tercet.evaluation.retention import TEACHER, retention
from tercet.export.cpu import cpu_name
from tercet.files import writable_folder, write_json, write_text
from tercet.models import default_device, load_encoder, refuse_pair, resolve
from tercet.processes import one_process
from tercet.report import markdown_table
from tercet.report.retention import retention_note, retention_plot, retention_table
from tercet.stages.names import name_of, refuse_models
from tercet.versions import installed_versions


def retain(
    students: Sequence[str],
    data: str | Path,
    out: Path,
    *,
    teacher: str = "embedded",
    split: str = "test",
    dims: Sequence[int] = (128,),
    rounds: int = 3,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Score and time `teacher` and `students` on a BEIR folder, in turns.

    Each of them whole, cut to `dims` dimensions, with an index of bytes, and the students' queries
    on the teacher's index. Writes retention.json, retention.md and the plot retention.svg to
    `out`, and returns what is in the first. Raises UserError under a launcher: speed is that of one
    process.
    """
    one_process("retention")
    paths = {TEACHER: teacher} | {name_of(path): path for path in students}
    refuse_models(students, (TEACHER,))
    for name, path in paths.items():
        resolve(path, name)
    task = read_task(data, split)
    writable_folder(out)
    models = {
        name: load_encoder(ModelConfig(path=path, trust_remote_code=trust_remote_code), name).to(
            default_device()
        )
        for name, path in paths.items()
    }
    for name, model in models.items():
        refuse_pair(model, name)
    machine = {
        "processor": cpu_name(),
        "device": str(default_device()),
        "threads": torch.get_num_threads(),
        "versions": installed_versions(),
    }
    found = {"machine": machine, **retention(models, task, dims, rounds)}
    write_json(out / "retention.json", found)
    table = markdown_table(retention_table(found))
    write_text(out / "retention.md", f"{table}\n\n{retention_note(found)}\n")
    retention_plot(found, out / "retention.svg")
    return found
