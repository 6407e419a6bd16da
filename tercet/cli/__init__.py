"""`tercet`: what users type. Each command reads its arguments, calls a stage, prints what came."""

# The order is that of `tercet --help`.
from tercet.cli import training  # noqa: F401  # isort: skip
from tercet.cli import models  # noqa: F401  # isort: skip
from tercet.cli import scoring  # noqa: F401  # isort: skip
from tercet.cli import exporting  # noqa: F401  # isort: skip
from tercet.cli import data, store  # noqa: F401  # isort: skip
from tercet.cli.app import main

__all__ = ["main"]
