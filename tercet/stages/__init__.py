"""The stages as functions of a config or of paths: what the command line and Python both call.

Each reads files, writes files and returns what it found. Stages never import one another below
this package; here they are put together.
"""

from tercet.stages.checking import check_data
from tercet.stages.exporting import export, export_run, onnx_options
from tercet.stages.indexing import index
from tercet.stages.mining import Mined, mine, space_of
from tercet.stages.names import name_of
from tercet.stages.scoring import delta_lines, evaluate, evaluate_bm25, evaluate_model
from tercet.stages.students import merge, student
from tercet.stages.training import distil, finetune

__all__ = [
    "Mined",
    "check_data",
    "delta_lines",
    "distil",
    "evaluate",
    "evaluate_bm25",
    "evaluate_model",
    "export",
    "export_run",
    "finetune",
    "index",
    "merge",
    "mine",
    "name_of",
    "onnx_options",
    "space_of",
    "student",
]
