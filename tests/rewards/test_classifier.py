"""Text classifiers equal plain transformers, one text at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from accord.config import ClassifierConfig, LoraConfig, ModelConfig
from accord.errors import ConfigError, ModelError, RewardError
from accord.model.export import save_scorer
from accord.model.roles import Roles
from accord.rewards import ClassifierReward
from accord.rewards.classifier import check_classifier
from accord.types import Rollout

CPU = torch.device("cpu")
TEXTS = ["the film was good and the end was odd", "slow", "a fine cast, a fine film, a fine end"]


def said(*texts: str, prompt: str = "the end ") -> list[Rollout]:
    return [Rollout((1,), (2,), (0.0,), "stop", prompt, text) for text in texts]


@pytest.fixture
def classifier(tokenizer, shake, tmp_path: Path) -> Callable[..., Path]:
    """`classifier(labels=[...], decoder=True)`: the folder of a tiny random classifier."""

    def make(
        labels=("NEGATIVE", "NEUTRAL", "POSITIVE"), decoder=False, pad=True, encoder=transformers.BertConfig, **options
    ) -> Path:
        common = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.4,
        } | options
        config = transformers.LlamaConfig(**common) if decoder else encoder(**common)
        model = AutoModelForSequenceClassification.from_config(config)
        shake(model.parameters(), 0.2)
        model.save_pretrained(tmp_path / "classifier")
        own = AutoTokenizer.from_pretrained(_saved(tokenizer, tmp_path / "t"))
        own.model_max_length = 64
        if not pad:
            own.pad_token = own.eos_token
        own.save_pretrained(tmp_path / "classifier")
        return tmp_path / "classifier"

    return make


def _saved(tokenizer, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def plain_logits(folder: Path, texts: list[str], end: str = "") -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text + end, return_tensors="pt")).logits for text in texts])


def test_the_probability_of_a_label_in_batches(classifier):
    folder = classifier()
    wanted = plain_logits(folder, TEXTS).softmax(dim=1)
    for label, index in (("POSITIVE", 2), ("NEGATIVE", 0), ("1", 1)):
        source = ClassifierReward(ClassifierConfig(model=str(folder), label=label, batch_size=2), "c", CPU)
        assert source.score(said(*TEXTS)) == pytest.approx(wanted[:, index].tolist(), abs=1e-5)
    assert len({round(p, 3) for p in wanted[:, 2].tolist()}) == 3, "the texts differ"


def test_a_label_that_is_a_number_is_a_name_first(classifier):
    folder = str(classifier(labels=("-1", "0", "1")))
    chosen = [check_classifier(ClassifierConfig(model=folder, label=label)) for label in ("-1", "0", "1", "2")]
    assert chosen == [0, 1, 2, 2]


def test_logits_and_prompt_with_response(classifier):
    folder = classifier()
    source = ClassifierReward(
        ClassifierConfig(model=str(folder), label="POSITIVE", value="logit", of="prompt_response"), "c", CPU
    )
    wanted = plain_logits(folder, ["the end " + text for text in TEXTS])[:, 2]
    assert source.score(said(*TEXTS)) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_labels_that_do_not_exclude_each_other_get_a_sigmoid(classifier):
    folder = classifier(problem_type="multi_label_classification")
    source = ClassifierReward(ClassifierConfig(model=str(folder), label="POSITIVE"), "c", CPU)
    assert source.score(said(*TEXTS)) == pytest.approx(plain_logits(folder, TEXTS)[:, 2].sigmoid().tolist(), abs=1e-5)


@pytest.mark.parametrize("pad", [True, False])
def test_a_decoder_is_read_at_its_last_token_whatever_pads(pad, classifier):
    folder = classifier(labels=("good",), decoder=True, pad=pad)
    source = ClassifierReward(ClassifierConfig(model=str(folder), value="logit"), "c", CPU, add_eos=True)
    end = AutoTokenizer.from_pretrained(folder).eos_token
    assert source.score(said(*TEXTS)) == pytest.approx(plain_logits(folder, TEXTS, end)[:, 0].tolist(), abs=1e-4)
    chance = ClassifierReward(ClassifierConfig(model=str(folder)), "c", CPU)
    assert chance.score(said(*TEXTS)) == pytest.approx(plain_logits(folder, TEXTS)[:, 0].sigmoid().tolist(), abs=1e-5)


def test_long_texts_are_cut_at_the_right_end_and_counted(classifier):
    folder = classifier()
    long = "good " * 100
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = ClassifierReward(ClassifierConfig(model=str(folder), label="POSITIVE"), "c", CPU)
    (score,) = source.score(said(long))
    ids = tokenizer(long)["input_ids"][:64]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert score == pytest.approx(float(model(torch.tensor([ids])).logits.softmax(dim=1)[0, 2]), abs=1e-5)
    assert source.take_counts() == {"cut": 1}
    whole = ClassifierReward(ClassifierConfig(model=str(folder), label="POSITIVE", of="prompt_response"), "c", CPU)
    (kept,) = whole.score(said("odd and slow", prompt=long))
    assert kept != whole.score(said("good and fine", prompt=long))[0], "the response is not what is cut"
    strict = ClassifierReward(ClassifierConfig(model=str(folder), label="POSITIVE", too_long="error"), "c", CPU)
    with pytest.raises(RewardError, match=r"reward c: sample 1 .* has \d+ tokens of .*, which reads 64 at most"):
        strict.score(said("good", long))


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "Camembert"])
def test_a_text_is_cut_where_the_model_s_positions_end(family, classifier, tokenizer):
    """RoBERTa and its kin count from the number of the padding token on."""
    folder = classifier(encoder=getattr(transformers, f"{family}Config"), max_position_embeddings=18)
    first = 0 if family == "Bert" else tokenizer.pad_token_id + 1
    long = "good " * 100
    source = ClassifierReward(ClassifierConfig(model=str(folder), label="POSITIVE", batch_size=2), "c", CPU)
    score, short = source.score(said(long, "good"))
    assert source.take_counts() == {"cut": 1}
    ids = AutoTokenizer.from_pretrained(folder)(long)["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([ids[: 18 - first]])).logits.softmax(dim=1)[0, 2]
        assert score == pytest.approx(float(wanted), abs=1e-5)
        assert short == pytest.approx(float(plain_logits(folder, ["good"]).softmax(dim=1)[0, 2]), abs=1e-5)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.tensor([ids[: 19 - first]]))


@pytest.mark.parametrize("decoder", [True, False])
def test_an_empty_text_is_the_end_alone(decoder, classifier):
    folder = classifier(decoder=decoder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("")["input_ids"] == []
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([[tokenizer.eos_token_id]])).logits[0, 2].item()
    source = ClassifierReward(ClassifierConfig(model=str(folder), label="POSITIVE", value="logit"), "c", CPU)
    first, second = source.score(said("", TEXTS[0]))  # beside another, so that it is padded
    assert first == pytest.approx(wanted, abs=1e-4)
    assert second == pytest.approx(float(plain_logits(folder, TEXTS[:1])[0, 2]), abs=1e-4)
    source._tokenizer.eos_token = None
    with torch.no_grad():
        wanted = model(torch.tensor([[tokenizer.pad_token_id]])).logits[0, 2].item()
    assert source.score(said(""))[0] == pytest.approx(wanted, abs=1e-4)
    source._tokenizer.pad_token = None
    with pytest.raises(RewardError, match=r"has no tokens for .*, whose tokenizer has neither EOS nor padding"):
        source.score(said(""))


def test_accord_s_own_reward_models_with_their_own_tokenizer(model_folder, shake, tmp_path: Path):
    """An adapter and a whole model: the same score as where it was trained, at EOS after prompt and response."""
    for adapter in (LoraConfig(r=2), None):
        trained = Roles(ModelConfig(path=str(model_folder("llama"))), adapter, CPU)
        trained.add_scorer()
        shake(trained.trainable("reward").values())
        folder = tmp_path / str(adapter is None)
        save_scorer(trained, folder)
        config = ClassifierConfig(model=str(folder), of="prompt_response", value="logit")
        source = ClassifierReward(config, "c", CPU, add_eos=True)
        from accord.batch import TokenBatch
        from accord.data import Encoder
        from accord.model.forward import forward

        encoder = Encoder(trained.tokenizer, frozenset())
        ids = [encoder.encode_example("the end ", text).input_ids for text in TEXTS]
        batch = TokenBatch.from_sequences(ids, [[False] * len(row) for row in ids])
        with torch.no_grad(), trained.use("reward") as role:
            wanted = forward(role, batch).scores_N
        assert source.score(said(*TEXTS)) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_what_is_wrong_is_told_before_any_weight_is_loaded(classifier, model_folder, tmp_path: Path, monkeypatch):
    folder = str(classifier())
    monkeypatch.setattr("accord.rewards.classifier._load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigError, match="has no label 'HAPPY'; it has NEGATIVE, NEUTRAL, POSITIVE"):
        check_classifier(ClassifierConfig(model=folder, label="HAPPY"))
    with pytest.raises(ConfigError, match="has the labels NEGATIVE, NEUTRAL, POSITIVE: say which with `label`"):
        check_classifier(ClassifierConfig(model=folder))
    with pytest.raises(ModelError, match="no sequence classifier"):
        check_classifier(ClassifierConfig(model=str(model_folder("llama")), label="POSITIVE"))
    with pytest.raises(ModelError, match="no model at"):
        check_classifier(ClassifierConfig(model=str(tmp_path / "none" / "x"), label="POSITIVE"))


def test_a_classifier_that_lacks_weights_is_refused(classifier):
    from safetensors.torch import load_file, save_file

    folder = classifier()
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 are missing, such as classifier\.weight"):
        ClassifierReward(ClassifierConfig(model=str(folder), label="POSITIVE"), "c", CPU)


def test_a_young_adapter_on_16_bit_weights_is_not_rounded_away(model_folder, tmp_path: Path):
    base = AutoModelForSequenceClassification.from_pretrained(model_folder("llama"), num_labels=1).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(model_folder("llama")).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, dtype=torch.bfloat16)
    made = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.uniform_(weight, -1e-4, 1e-4)
    made.save_pretrained(tmp_path / "adapter")
    source = ClassifierReward(ClassifierConfig(model=str(tmp_path / "adapter"), value="logit"), "c", CPU)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, dtype=torch.float32)
    folded = {name: weight for name, weight in source._model.named_parameters() if "q_proj" in name}
    for name, weight in folded.items():
        delta = weight - plain.get_parameter(name)
        layer = made.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        torch.testing.assert_close(delta, layer.get_delta_weight("default").float(), atol=1e-7, rtol=1e-3)
        assert delta.abs().max() > 0
