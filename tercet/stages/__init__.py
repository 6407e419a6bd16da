"""The stages as functions of a config or of paths: what the command line and Python both call.

Each reads files, writes files and returns what it found. Stages never import one another below
this package; here they are put together.
"""

from tercet.stages.calibrating import calibrate_model
from tercet.stages.checking import check_data
from tercet.stages.comparing import compare
from tercet.stages.exporting import export, export_run
from tercet.stages.mining import Mined, mine, space_of
from tercet.stages.names import name_of
from tercet.stages.scoring import delta_lines, evaluate, evaluate_bm25, evaluate_model
from tercet.stages.serving import serve
from tercet.stages.students import merge, student
from tercet.stages.training import distil, finetune

__all__ = [
    "Mined",
    "calibrate_model",
    "check_data",
    "compare",
    "delta_lines",
    "distil",
    "evaluate",
    "evaluate_bm25",
    "evaluate_model",
    "export",
    "export_run",
    "finetune",
    "merge",
    "mine",
    "name_of",
    "serve",
    "space_of",
    "student",
]
