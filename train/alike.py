"""Whether all processes of a launch train on the same thing."""

import json
import platform
from typing import Any

from accelerate.utils import gather_object

from tercet.errors import UserError
from tercet.files import fingerprint
from tercet.processes import process_count
from tercet.train.output import differences


def refuse_unlike(begun: dict[str, Any]) -> None:
    """Raise UserError, on every process, if one began with another config, rows, models or code.

    Each machine reads its own files. Where they differ, so do batches and plans: the gradient is of
    no batch at all, or the processes wait for each other for ever. `begun`: plain JSON values. Only
    the name of the output folder may differ. A meeting of all processes.
    """
    if process_count() == 1:
        return
    own = begun | {"config": begun["config"] | {"output": None}}
    digests: list[str] = gather_object([fingerprint([json.dumps(own, sort_keys=True)])])
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    found: list[tuple[str, dict[str, Any]]] = gather_object([(platform.node(), own)])
    (host, first), (place, second) = found[0], found[other]
    listed = (f"{key}: {a!r}, {b!r}" for key, (a, b) in differences(first, second).items())
    raise UserError(
        f"processes 0 (on {host}) and {other} (on {place}) do not train on the same thing "
        f"({'; '.join(listed)}); start all with the same command, files and packages"
    )
