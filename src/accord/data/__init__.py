"""Data: sources, formats, templates, token ids, and the film reviews that the quickstart writes for itself.

Nothing here imports torch; transformers, datasets and pyarrow are imported only where a function needs them.
"""

from accord.data.chat import CHAT_TEMPLATES, Encoder, TokenSequence, set_chat_template, stop_ids
from accord.data.check import CheckReport, check, render
from accord.data.classes import EncodedClasses, check_labels, encode_classes, find_labels
from accord.data.convert import Converted, convert
from accord.data.encode import (
    Encoded,
    EncodedLabelled,
    EncodedPair,
    EncodedPrompt,
    EncodedSteps,
    encode_examples,
    encode_labelled,
    encode_pairs,
    encode_prompts,
    encode_steps,
)
from accord.data.formats import FORMATS, Loaded, convert_row, detect, read_records
from accord.data.mismatch import with_mismatched
from accord.data.sources import Rejection, Row, RowError, count_reasons, read_rows

__all__ = [
    "CHAT_TEMPLATES",
    "FORMATS",
    "CheckReport",
    "Converted",
    "Encoded",
    "EncodedClasses",
    "EncodedLabelled",
    "EncodedPair",
    "EncodedPrompt",
    "EncodedSteps",
    "Encoder",
    "Loaded",
    "Rejection",
    "Row",
    "RowError",
    "TokenSequence",
    "check",
    "check_labels",
    "convert",
    "convert_row",
    "count_reasons",
    "detect",
    "encode_classes",
    "encode_examples",
    "encode_labelled",
    "encode_pairs",
    "encode_prompts",
    "encode_steps",
    "find_labels",
    "read_records",
    "read_rows",
    "render",
    "set_chat_template",
    "stop_ids",
    "with_mismatched",
]
