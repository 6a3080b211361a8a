"""Text classifiers of transformers, with tokenizers of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from accord.config import ClassifierConfig
from accord.errors import ConfigError, ModelError, RewardError
from accord.model.classifiers import ClassFacts, head_rows, load_for_adapter, read_labels
from accord.model.loading import Location, distinct_padding, is_scorer, locate, quiet_progress, read_config
from accord.model.merging import folded_in, has_virtual_tokens
from accord.model.score_facts import ScoreFacts
from accord.ops.products import fast_type
from accord.rewards.protocol import Counts, checked_scores, describe
from accord.types import Rollout


class ClassifierReward:
    """Probability or logit of one label, of the response or of prompt and response.

    Args:
        config: see there.
        label: name in metrics and errors.
        device: where the classifier runs.
        add_eos: end each text with the tokenizer's EOS, as Accord's own reward models are trained.
        facts: with the mean and standard deviation to normalise by, if scores are to be normalised.

    Raises:
        ModelError, ConfigError: see `check_classifier`.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        label: str,
        device: torch.device,
        add_eos: bool = False,
        facts: ScoreFacts | None = None,
    ) -> None:
        self.config, self.label, self.device, self.add_eos = config, label, device, add_eos
        self.facts = facts or ScoreFacts()
        self._index = check_classifier(config)
        location = locate(config.model)
        self._tokenizer = _load_tokenizer(location)
        # Right, because the score of a decoder is read at the last token; which end is cut is chosen for each text.
        self._tokenizer.padding_side = "right"
        self._tokenizer.truncation_side = "right" if config.of == "response" else "left"
        model = _load_model(location)
        self._model = model.to(device, fast_type(model.dtype, device)).eval().requires_grad_(False)
        padding = distinct_padding(self._tokenizer)
        self._model.config.pad_token_id = padding
        # Virtual tokens that are embeddings hide padding from transformers' classifiers.
        hidden = _virtual_tokens(self._model) > 0 and not _in_layers(self._model)
        self._batch_size = 1 if padding is None or hidden else config.batch_size
        self._counts = Counts("cut")
        self._limit = min(self._tokenizer.model_max_length, _reach(self._model) - _virtual_tokens(self._model))

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        ids = [self._encode(index, rollout) for index, rollout in enumerate(rollouts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # texts of like length together: less padding
        scores = torch.zeros(len(ids))
        for start in range(0, len(order), self._batch_size):
            members = order[start : start + self._batch_size]
            scores[members] = self._values([ids[i] for i in members])
        return checked_scores(self.label, [self.facts.normalize(score) for score in scores.tolist()], rollouts)

    def take_counts(self) -> dict[str, int]:
        """See `CountingSource`."""
        return self._counts.take()

    def _encode(self, index: int, rollout: Rollout) -> list[int]:
        whole = self.config.of == "prompt_response"
        text = rollout.prompt_text + rollout.response_text if whole else rollout.response_text
        bos, eos = self._tokenizer.bos_token, self._tokenizer.eos_token_id
        specials = not (bos and text.startswith(bos))  # a chat template writes it itself
        ids: list[int] = self._tokenizer(text, add_special_tokens=specials, verbose=False)["input_ids"]
        room = self._limit - (1 if self.add_eos else 0)
        if len(ids) > room:
            if self.config.too_long == "error":
                raise RewardError(
                    f"reward {self.label}: {describe(index, rollout)} has {len(ids)} tokens of {self.config.model}, which reads "
                    f"{room} at most (`too_long: error`)"
                )
            self._counts.add("cut")
            ids = self._tokenizer(text, add_special_tokens=specials, truncation=True, max_length=room)["input_ids"]
        if self.add_eos and eos is not None and ids[-1:] != [eos]:
            ids = [*ids, eos]
        if not ids:  # an empty response, which ended at once
            ids = [token for token in (eos, self._tokenizer.pad_token_id) if token is not None][:1]
        if not ids:
            raise RewardError(
                f"reward {self.label}: {describe(index, rollout)} has no tokens for {self.config.model}, whose tokenizer has "
                "neither EOS nor padding to read instead"
            )
        return ids

    @torch.no_grad()
    def _values(self, ids: list[list[int]]) -> Tensor:
        longest, padding = max(map(len, ids)), self._model.config.pad_token_id or 0
        input_ids = torch.tensor([row + [padding] * (longest - len(row)) for row in ids], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=self.device)
        logits = self._model(input_ids=input_ids, attention_mask=mask).logits.float()
        if self.config.value == "logit":
            return logits[:, self._index].cpu()
        many = self._model.config.problem_type == "multi_label_classification"
        chances = logits.sigmoid() if many or logits.shape[1] == 1 else logits.softmax(dim=1)
        return chances[:, self._index].cpu()


def check_classifier(config: ClassifierConfig) -> int:
    """The number of the label to read; everything that can be known without weights is checked.

    Raises:
        ModelError: no such model, or it is no sequence classifier.
        ConfigError: it has no such label, or several and none is named.
    """
    location = locate(config.model)
    if not is_scorer(location):
        raise ModelError(f"{config.model} is no sequence classifier, and no adapter that is one")
    facts = read_labels(location)
    if facts is not None:
        names = dict(enumerate(facts.labels))
    elif location.adapter is not None:
        names = {0: "LABEL_0"}
        if head_rows(location.adapter) is None:
            raise ModelError(f"{location.adapter} is an adapter without a head, so it is no classifier")
    else:
        names = {int(number): str(name) for number, name in read_config(location.base).id2label.items()}
    if config.label is None:
        if len(names) > 1:
            raise ConfigError(
                f"classifier {config.model} has the labels {', '.join(names.values())}: say which with `label`"
            )
        return 0
    by_number = {str(number): number for number in names}
    by_name = {name: number for number, name in names.items()}
    found = (by_number | by_name).get(config.label)  # names first: -1, 0 and 1 may be names
    if found is None:
        raise ConfigError(
            f"classifier {config.model} has no label {config.label!r}; it has {', '.join(names.values())}"
        )
    return found


def _load_tokenizer(location: Location) -> Any:
    own = location.adapter is not None and (location.adapter / "tokenizer_config.json").is_file()
    source = str(location.adapter) if own else location.base
    try:
        return copy.deepcopy(AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {source}: {str(error).splitlines()[0]}") from error


def _load_model(location: Location) -> Any:
    if location.adapter is not None:
        facts = read_labels(location) or ClassFacts("sequence", ("LABEL_0",))
        base = load_for_adapter(location.base, facts, torch.float32)
        if not has_virtual_tokens(location.adapter):
            return folded_in(base, location.adapter)
        return peft.PeftModel.from_pretrained(base, str(location.adapter))
    try:
        with quiet_progress():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                location.base, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"the classifier {location.base} cannot be loaded: {str(error).splitlines()[0]}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{location.base} does not hold all weights of a {type(model).__name__}: {len(missing)} are missing, such as "
            f"{missing[0]}, and random ones would take their place"
        )
    return model


def _reach(model: Any) -> int:
    """How many tokens the model has positions for.

    RoBERTa and its kin begin to count after the number of the padding token, which their table of positions knows as its own
    padding: of max_position_embeddings 514 they read 512.
    """
    reach: int = getattr(model.config, "max_position_embeddings", None) or 10**9
    tables = (part for name, part in model.named_modules() if name.rpartition(".")[2] == "position_embeddings")
    before = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    return reach - max(before, default=0)


def _virtual_tokens(model: Any) -> int:
    """How many an adapter puts before each text; 0 without such an adapter."""
    config = model.active_peft_config if isinstance(model, peft.PeftModel) else None
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0


def _in_layers(model: Any) -> bool:
    """Whether they are keys and values of the layers, and not embeddings."""
    return bool(model.active_peft_config.peft_type == peft.PeftType.PREFIX_TUNING)
