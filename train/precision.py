"""Half precision: where it computes, and where float32 stays.

Matrix products may run in bfloat16 or float16; weights, the sum of the micro-batches' gradients,
what processes send of it, vectors and loss are float32, under any launch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from torch.distributed.fsdp import MixedPrecisionPolicy

from tercet.configs import Config
from tercet.errors import UserError


def refuse_precision(accelerator: Accelerator, config: Config) -> None:
    """Raise UserError for a mixed precision that would not do what it says."""
    asked = accelerator.mixed_precision
    if asked == "fp16" and not accelerator.native_amp:
        raise UserError(  # Accelerate would compute in float32 without a word
            f"train.mixed_precision: fp16 is not to be had on {accelerator.device}; use bf16"
        )
    refuse_two_precisions(asked, config)


def refuse_two_precisions(asked: str, config: Config) -> None:
    """Raise UserError for mixed precision (`asked`) of weights that are not in float32."""
    if asked != "no" and config.model.dtype != "float32":
        raise UserError(
            f"train.mixed_precision: {asked} needs weights in float32, model.dtype is "
            f"{config.model.dtype}; leave out one of the two"
        )


def compute_as_ddp(accelerator: Accelerator) -> None:
    """Leave the choice of precision to autocast under FSDP too: the same arithmetic as under DDP.

    Accelerate would have FSDP gather weights, add up gradients over the micro-batches, send them
    and round the vectors in half precision.
    """
    if accelerator.is_fsdp2 and (plugin := accelerator.state.fsdp_plugin) is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy()


@contextmanager
def own_forward(encoder: SentenceTransformer) -> Iterator[None]:
    """Without the autocast that Accelerate puts round the forward of a model that is trained.

    Then the vectors are those of the weights' own dtype, as every other command makes them,
    whatever the launch: a copy that is filled under FSDP or with averages has no autocast either.
    """
    wrapped, own = vars(encoder).get("forward"), vars(encoder).get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    encoder.forward = own  # type: ignore[method-assign]
    try:
        yield
    finally:
        encoder.forward = wrapped  # type: ignore[method-assign]
