"""The README.md of a saved model, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from accord.model.classifiers import read_labels
from accord.model.loading import is_scorer, locate, read_config, source_of

CARD = "README.md"


@dataclass(frozen=True)
class Section:
    """A part of the card below the front matter."""

    title: str
    text: str


@dataclass(frozen=True)
class SavedModel:
    """What a folder holds."""

    base: str | None
    """What an adapter sits on; `None` for a whole model."""
    kind: str
    """`causal`, `encoder-decoder`, `reward`, `classifier` or `tagger`."""
    labels: tuple[str, ...] = ()
    """Of a classifier of texts, or of their words (`tagger`)."""

    @property
    def library(self) -> str:
        """The package that loads it."""
        return "transformers" if self.base is None else "peft"

    @property
    def task(self) -> str:
        """The hub's name of what it does."""
        return {
            "causal": "text-generation",
            "encoder-decoder": "text2text-generation",
            "tagger": "token-classification",
        }.get(self.kind, "text-classification")


def look_at(folder: Path) -> SavedModel:
    """Find out what a folder of a model or adapter holds.

    Raises:
        ModelError: it is neither, or its base's config cannot be read.
    """
    location = locate(str(folder))
    base = location.base if location.adapter is not None else None
    facts = read_labels(location)
    if facts is not None:
        return SavedModel(base, "classifier" if facts.level == "sequence" else "tagger", facts.labels)
    if is_scorer(location):
        return SavedModel(base, "reward")
    return SavedModel(base, "encoder-decoder" if read_config(location.base).is_encoder_decoder else "causal")


def write_card(
    folder: Path, *, tags: Sequence[str] = (), trained_from: str | None = None, sections: Iterable[Section] = ()
) -> Path:
    """Write the card of a saved model, with how to load it.

    Args:
        folder: of the model or adapter.
        tags: besides `accord`, such as the algorithm.
        trained_from: what the run started from, as its recipe gave it.
        sections: what else is known: the run, its data, its results.

    Returns:
        The file.
    """
    model = look_at(folder)
    source = model.base or trained_from
    data = ModelCardData(
        base_model=source if source and on_hub(source) else None,
        library_name=model.library,
        pipeline_tag=model.task,
        tags=["accord", *tags],
    )
    parts = [Section("How to load it", loading_code(model)), *sections]
    body = "\n\n".join(f"## {part.title}\n\n{part.text.strip()}" for part in parts)
    what = {
        "causal": "language model",
        "reward": "reward model",
        "classifier": "classifier of texts",
        "tagger": "classifier of words",
    }.get(model.kind, "encoder-decoder model")
    first = f"A {what}, trained with Accord." if model.base is None else f"A PEFT adapter: a {what} on its base."
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {' '.join(('accord', *tags))}\n\n{first}\n\n{body}\n")
    card.save(folder / CARD)
    return folder / CARD


def on_hub(source: str) -> bool:
    """Whether a base's name can be one on the hub; a path of this machine means nothing to others."""
    name = source_of(source)[0]
    return name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name).exists()


def loading_code(model: SavedModel) -> str:
    """Python with which plain transformers or peft loads it. `FOLDER` stands for where it lies, or its name on the hub."""
    stem = {"causal": "CausalLM", "encoder-decoder": "Seq2SeqLM", "tagger": "TokenClassification"}.get(
        model.kind, "SequenceClassification"
    )
    lines = ["from transformers import AutoTokenizer", "", 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")']
    extra = ", num_labels=1" if model.kind == "reward" else ""
    extra = f", id2label={dict(enumerate(model.labels))}" if model.labels else extra
    if (
        stem == "SequenceClassification"
    ):  # the base's own config may pad with EOS, and a score is read at the last token that is not padding
        extra += ", pad_token_id=tokenizer.pad_token_id"
    base: Any = model.base
    note = ""
    if base is None:
        lines[:1] = [f"from transformers import AutoModelFor{stem}, AutoTokenizer"]
        lines += [f'model = AutoModelFor{stem}.from_pretrained("FOLDER")']
    elif base.endswith(".gguf"):
        folder, file = source_of(base)
        folder = folder if on_hub(base) else "BASE"
        lines[:1] = [
            "from peft import PeftModel",
            f"from transformers import AutoModelFor{stem}, AutoTokenizer, GgufConfig",
        ]
        lines += [
            f'base = AutoModelFor{stem}.from_pretrained("{folder}", gguf_file="{file["gguf_file"]}"{extra},',
            "    quantization_config=GgufConfig(dequantize=True))",
            'model = PeftModel.from_pretrained(base, "FOLDER")',
        ]
    else:
        lines[:1] = ["from peft import PeftModel", f"from transformers import AutoModelFor{stem}, AutoTokenizer"]
        name = base if on_hub(base) else "BASE"
        lines += [
            f'base = AutoModelFor{stem}.from_pretrained("{name}"{extra})',
            'model = PeftModel.from_pretrained(base, "FOLDER")',
        ]
        note = "" if name == base else "\n\n`BASE` is the model that the adapter was trained on; see below."
    return "```python\n" + "\n".join(lines) + "\n```" + note
