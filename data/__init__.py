"""Rows in, batches out."""

from tercet.data.rows import Ragged, RetrievalTask, Texts, TrainingSet, normalise, text_hash

__all__ = ["Ragged", "RetrievalTask", "Texts", "TrainingSet", "normalise", "text_hash"]
