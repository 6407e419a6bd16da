"""Rows in, batches out."""

from tercet.data.beir import read_task, write_task
from tercet.data.check import check_folder, check_sources, overlap
from tercet.data.code import code_task
from tercet.data.corpus import read_corpus, read_documents
from tercet.data.leaks import Leakage, leakage
from tercet.data.mined import with_mined
from tercet.data.read import read_training
from tercet.data.rows import Ragged, RetrievalTask, Texts, TrainingSet, normalise, text_hash
from tercet.data.sts import SimilarityTask, read_similarity

__all__ = [
    "Leakage",
    "Ragged",
    "RetrievalTask",
    "SimilarityTask",
    "Texts",
    "TrainingSet",
    "check_folder",
    "check_sources",
    "code_task",
    "leakage",
    "normalise",
    "overlap",
    "read_corpus",
    "read_documents",
    "read_similarity",
    "read_task",
    "read_training",
    "text_hash",
    "with_mined",
    "write_task",
]
