"""The stages as functions of a config or of paths: what the command line and Python both call.

Each reads files, writes files and returns what it found. Stages never import one another below
this package; here they are put together.
"""

from tercet.stages.calibrating import calibrate_model
from tercet.stages.checking import check_data
from tercet.stages.comparing import compare
from tercet.stages.exporting import export, export_run, onnx_options
from tercet.stages.indexing import index
from tercet.stages.measuring import (
    evaluate_bm25,
    evaluate_model,
    evaluate_similarity,
    evaluate_stages,
    per_query,
)
from tercet.stages.merging import Curve, merge, merge_curve
from tercet.stages.mining import Mined, mine, space_of
from tercet.stages.names import name_of
from tercet.stages.official import evaluate_official
from tercet.stages.retaining import retain
from tercet.stages.scoring import delta_lines, evaluate
from tercet.stages.serving import serve
from tercet.stages.students import pair, student
from tercet.stages.tasks import Search
from tercet.stages.training import distil, finetune, with_student

__all__ = [
    "Curve",
    "Mined",
    "Search",
    "calibrate_model",
    "check_data",
    "compare",
    "delta_lines",
    "distil",
    "evaluate",
    "evaluate_bm25",
    "evaluate_model",
    "evaluate_official",
    "evaluate_similarity",
    "evaluate_stages",
    "export",
    "export_run",
    "finetune",
    "index",
    "merge",
    "merge_curve",
    "mine",
    "name_of",
    "onnx_options",
    "pair",
    "per_query",
    "retain",
    "serve",
    "space_of",
    "student",
    "with_student",
]
