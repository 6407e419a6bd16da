"""8-bit weights: dynamic quantisation, or static with ranges taken from the user's texts."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tercet.export.runtime import Feeds
from tercet.files import library_errors
from tercet.progress import progress

OPERATORS = ["MatMul", "Gather"]  # products with weights, and the tables of embeddings


def quantise_dynamic(source: Path, target: Path, *, reduce_range: bool) -> None:
    """Weights of linear layers to int8, a scale per output channel; tables to uint8, one scale.

    Activations are scaled as they come. `reduce_range` leaves linear layers 7 bits, tables all 8.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quantiser(source):
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )


def quantise_static(
    source: Path, target: Path, feeds: Sequence[Feeds], *, reduce_range: bool
) -> None:
    """Weights as `quantise_dynamic` does; activations by the least and greatest seen in `feeds`."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    with _quantiser(source), progress("calibrate", len(feeds)) as advance:

        class Reader(CalibrationDataReader):
            """Hands out one batch after the other."""

            def __init__(self) -> None:
                self.left = iter(feeds)

            def get_next(self) -> Feeds | None:  # type: ignore[override]  # None ends it
                found = next(self.left, None)
                advance(found is not None)
                return found

        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        )


@contextmanager
def _quantiser(source: Path) -> Iterator[None]:
    """The quantiser advises on the root logger; what it did is measured instead.

    A part of it is C++ that does not notice a full disk and reads back half a graph, so there has
    to be room for a copy of the graph and for what is made of it before it starts.
    """
    if shutil.disk_usage(source.parent).free < 2 * source.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source.parent))
    logging.disable(logging.WARNING)
    try:
        with library_errors("--int8: the graph cannot be quantised", "export without --int8"):
            yield
    finally:
        logging.disable(logging.NOTSET)
