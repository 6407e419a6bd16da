"""A forecast as a table."""

from tercet.train import Forecast, Predicted
from tercet.train.cost import SHARE


def forecast_table(found: Forecast) -> list[dict[str, str]]:
    """Two columns: what, and how much with its unit."""
    minutes = found.hours * 60
    rows = {
        "processes": f"{found.processes}",
        "rows": f"{found.rows:,}",
        "steps": f"{found.steps:,}",
        "distinct texts in a batch": f"{found.texts_per_batch:,.0f}",
        "tokens in a batch": f"{found.tokens_per_batch:,.0f}",
        "tokens saved by encoding each text once": f"{found.duplicate_tokens_saved:.1%}",
        "padded tokens for each real one": f"{found.padded_per_real_token:.2f}",
        "texts cut at the maximum length": f"{found.truncated_share:.1%}",
        "tokens in a micro-batch, at most": f"{found.micro_tokens:,}",
        "micro-batches per process and step": f"{found.micro_batches:.0f}",
        "tokens whose graphs are kept, at most": f"{found.keep_tokens:,}",
        "tokens encoded twice": f"{found.recomputed:.1%}",
        "memory of a kept token": f"{found.bytes_per_token / 1024:.0f} KiB",
        "peak memory of a process, predicted": f"{found.peak_megabytes:,.0f} MiB",
        "tokens per second": f"{found.tokens_per_second:,.0f}",
        "time of a step": f"{found.seconds_per_step:.2f} s",
        "time of the run": f"{found.hours:.1f} h" if found.hours > 2 else f"{minutes:.1f} min",
    }
    return [{"Plan": what, "": value} for what, value in rows.items()]


def predicted_table(found: Predicted) -> list[dict[str, str]]:
    """The same of a run elsewhere: all but the counts of tokens are predictions."""
    cost, cluster = found.cost, found.cluster
    launch = "FSDP" if cluster.sharded else "DDP"
    room = "" if found.fits else f", more than the {found.device.memory / 1e9:.0f} GB there are"
    single = "float32 without TF32; train.mixed_precision=bf16 is faster"
    rows = {
        "processes": f"{cluster.world:,} ({cluster.nodes} x {cluster.gpus} {found.name}, {launch})",
        "precision of products": "half (bf16 or fp16)" if cluster.half else single,
        "steps": f"{found.steps:,}",
        "tokens in a batch": f"{cost.tokens:,.0f}",
        "padded tokens for each real one": f"{cost.padded / cost.tokens:.2f}",
        "busiest process above the mean": f"{cost.imbalance:.1%}",
        "tokens in a micro-batch, at most": f"{found.micro_tokens:,}",
        "tokens whose graphs are kept, at most": f"{found.keep_tokens:,}",
        "tokens encoded twice": f"{cost.recomputed:.1%}",
        "TFLOP of a step": f"{cost.flops / 1e12:,.2f}",
        "sent by each process and step": f"{cost.sent / 1e6:,.1f} MB",
        "leaving each node and step": f"{cost.leaving / 1e6:,.1f} MB",
        "memory of a process": f"{cost.memory / 1e9:,.1f} GB{room}",
        f"time of a step, at {SHARE:.0%} of the peak": f"{found.seconds * 1000:,.1f} ms",
        "tokens per second": f"{cost.tokens / found.seconds:,.0f}",
        "device hours of the run": f"{found.hours:,.2f}",
    }
    return [{"Prediction": what, "": value} for what, value in rows.items()]
