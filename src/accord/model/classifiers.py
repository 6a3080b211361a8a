"""Classifiers as transformers has them: which class, which head, which names; and how those of a saved one are found."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from accord.errors import ModelError
from accord.model.adapter_files import WEIGHTS, saved_tensors
from accord.model.heads import ClassHead
from accord.model.loading import (
    Location,
    distinct_padding,
    first_line,
    quiet_progress,
    read_adapter_config,
    read_config,
    source_of,
)

FILE = "accord_labels.json"
"""Names of the classes, beside an adapter's weights: peft keeps none."""
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
"""Level -> peft's name of the task."""
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
"""How the names of transformers' classes end that have such a head and no words to give."""
HEADS = ("score", "classifier")
"""Names under which transformers' classifiers keep their head; peft trains and saves these by itself."""

Level: TypeAlias = Literal["sequence", "token"]


@dataclass(frozen=True)
class ClassFacts:
    """What a classifier tells apart."""

    level: Level
    labels: tuple[str, ...]
    """Names by number."""


@dataclass(frozen=True)
class HeadShape:
    """The head of a family's classifier."""

    name: str
    """Its module's name in transformers' class."""
    bias: bool


def _automatic(level: Level) -> Any:
    return AutoModelForSequenceClassification if level == "sequence" else AutoModelForTokenClassification


def head_shape(base: str, config: Any, level: Level) -> HeadShape:
    """What the head of a family's classifier is like; needs no weights.

    Raises:
        ModelError: transformers has no such classifier for the family, or one whose head is no single linear layer.
    """
    automatic, instead = _automatic(level), "take another base"
    if level == "token":
        instead += ", or label whole texts (algorithm.level: sequence)"
    if config.is_encoder_decoder:
        raise ModelError(
            f"{base} is an encoder-decoder model ({config.model_type}), whose classifiers in transformers read other states than "
            f"its language model learns with, so a classifier could not be saved for it; {instead}"
        )
    if type(config) not in automatic._model_mapping:
        raise ModelError(
            f"{base}: transformers has no {level} classifier for {config.model_type}, so one could not be saved for it; {instead}"
        )
    asked = copy.deepcopy(config)
    asked.num_labels = 3
    with torch.device("meta"):
        skeleton = automatic.from_config(asked)
    for name in HEADS:
        layer = getattr(skeleton, name, None)
        if isinstance(layer, nn.Linear) and layer.out_features == 3:
            return HeadShape(name, layer.bias is not None)
    raise ModelError(
        f"{base}: the head of {type(skeleton).__name__} is not one linear layer named {' or '.join(HEADS)}, so what is "
        f"learnt here could not be saved in it; {instead}"
    )


def named_head(head: ClassHead, name: str) -> dict[str, Tensor]:
    """The weights of a head by their names in transformers' class."""
    return {f"{name}.{key}": weight.detach() for key, weight in head.named_parameters()}


def as_classifier(
    model: PreTrainedModel, facts: ClassFacts, head: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The classifier with a causal model's trunk and a head; weights are shared, not copied. The tokenizer gets a pad token that
    is not EOS, see `distinct_padding`."""
    config = copy.deepcopy(model.config)
    set_labels(config, facts)
    config.pad_token_id = distinct_padding(tokenizer)
    with torch.device("meta"):
        classifier: PreTrainedModel = _automatic(facts.level).from_config(config)
    prefix = classifier.base_model_prefix
    tensors = {f"{prefix}.{key}": tensor for key, tensor in model.base_model.state_dict().items()}
    tensors |= {key: tensor.detach().to(model.dtype) for key, tensor in head.items()}
    classifier.load_state_dict(tensors, strict=True, assign=True)
    return classifier


def set_labels(config: Any, facts: ClassFacts) -> None:
    """Write the names of the classes into a model's config, and with them their number."""
    config.id2label = dict(enumerate(facts.labels))
    config.label2id = {label: number for number, label in enumerate(facts.labels)}
    if facts.level == "sequence" and len(facts.labels) > 1:
        config.problem_type = "single_label_classification"


# --- saved ones ------------------------------------------------------------------------------------------------------


def load_for_adapter(
    base: str, facts: ClassFacts, dtype: torch.dtype | None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A classifier on a base's weights whose head an adapter will bring.

    Raises:
        ModelError: the base cannot be loaded, or lacks other weights than the head.
    """
    source, file = source_of(base)
    config = read_config(base, trust_remote_code)
    head = head_shape(base, config, facts.level).name
    set_labels(config, facts)
    try:
        with quiet_progress():
            loaded: Any = _automatic(facts.level).from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **({} if dtype is None else {"dtype": dtype}),
                **file,
                **({"quantization_config": GgufConfig(dequantize=True)} if file else {}),
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the model {base} cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    missing = [key for key in report["missing_keys"] if not key.startswith(f"{head}.")]
    if missing:
        raise ModelError(f"{base} lacks {len(missing)} weights of a {type(model).__name__}, such as {min(missing)}")
    return model  # type: ignore[no-any-return]


def write_labels(folder: Path, facts: ClassFacts) -> None:
    """Write what an adapter tells apart into its folder."""
    (folder / FILE).write_text(json.dumps(asdict(facts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_labels(location: Location, trust_remote_code: bool = False) -> ClassFacts | None:
    """What a saved classifier tells apart; `None` for what is none, such as a reward model, which has one label.

    Raises:
        ModelError: the file of an adapter does not say what it must.
    """
    if location.adapter is None:
        config = read_config(location.base, trust_remote_code)
        names = config.architectures or []
        levels = [level for level in TASKS if any(f"{level.title()}Classification" in name for name in names)]
        if not levels or config.num_labels < 2:
            return None
        return ClassFacts(levels[0], tuple(config.id2label[number] for number in range(config.num_labels)))  # type: ignore[arg-type]
    path = cached_file(
        str(location.adapter),
        FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return _unnamed(location.adapter)
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        facts = ClassFacts(found["level"], tuple(found["labels"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{location.adapter}: {FILE} cannot be read: {error}") from error
    if (
        facts.level not in TASKS
        or len(set(facts.labels)) < 2
        or not all(isinstance(name, str) for name in facts.labels)
    ):
        raise ModelError(
            f"{location.adapter}: {FILE} holds {found}; level is sequence or token, and labels are two or more names"
        )
    return facts


def _unnamed(adapter: Path) -> ClassFacts | None:
    """Of an adapter that was not made by Accord: as many labels as its head has rows, under transformers' names for them."""
    task = read_adapter_config(adapter).get("task_type")
    level = next((level for level, name in TASKS.items() if name == task), None)
    rows = head_rows(adapter) if level is not None else None
    if level is None or rows is None or rows < 2:
        return None
    return ClassFacts(level, tuple(f"LABEL_{number}" for number in range(rows)))  # type: ignore[arg-type]


def head_rows(adapter: Path) -> int | None:
    """How many labels an adapter's own head has; `None` without a head.

    Raises:
        ModelError: its weights are not there, or damaged.
    """
    for key, tensor in saved_tensors(adapter).items():
        if key.rsplit(".", 2)[-2:] in ([name, "weight"] for name in HEADS):
            return int(tensor.shape[0])
    return None


def saved_head(adapter: Path, name: str) -> dict[str, Tensor]:
    """The weights of an adapter's head by their names in the head.

    Raises:
        ModelError: there are none, or the adapter's file is damaged.
    """
    middle = f".{name}."
    head = {key.rpartition(".")[2]: tensor for key, tensor in saved_tensors(adapter).items() if middle in key}
    if "weight" not in head:
        raise ModelError(f"{adapter} is said to be a classifier, and {WEIGHTS} holds no weights of its head ({name})")
    return head


def refuse_without_words(path: str, location: Location, trust_remote_code: bool = False) -> None:
    """Refuse a reward model or classifier where a language model is wanted: its trunk would load, and the rest be made up or
    be the base's. Needs no weights.

    Args:
        path: as it was given.
        location: what it points to.
        trust_remote_code: see `ModelConfig`.

    Raises:
        ModelError: it is one, whole or an adapter.
    """
    if location.adapter is not None:
        task = str(read_adapter_config(location.adapter).get("task_type"))
        found = task in ("SEQ_CLS", "TOKEN_CLS")
    else:
        names = read_config(location.base, trust_remote_code).architectures or []
        found = bool(names) and all(name.endswith(CLASSIFIERS) for name in names)
    if not found:
        return
    facts = read_labels(location, trust_remote_code)
    if facts is not None:
        raise ModelError(
            f"{path} is a classifier with the labels {_listed(facts.labels)}, and a language model is wanted here: take the one "
            "that it was trained from"
        )
    raise ModelError(
        f"{path} is a reward model, which scores text and writes none, and a language model is wanted here. To score with it: "
        f"--reward {quote(path)}"
    )


def refuse_classes(path: str, location: Location, wanted: str) -> None:
    """Refuse a classifier where one number is wanted.

    Args:
        path: as it was given.
        location: what it points to.
        wanted: what it was given as, for the message.

    Raises:
        ModelError: it tells classes apart.
    """
    facts = read_labels(location)
    if facts is not None:
        how = f"use reward: {{classifier: {{model: {path}, label: {facts.labels[-1]}}}}}"
        raise ModelError(
            f"{path} is a {facts.level} classifier with the labels {_listed(facts.labels)}, so it gives no one number and "
            f"cannot be {wanted}"
            + (f"; {how}, which reads the probability of one" if facts.level == "sequence" else "")
        )


def _listed(labels: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + rest
