"""Classifiers: packed they say what plain transformers and peft say one text at a time, of each kind and level."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from accord.batch import TokenBatch
from accord.errors import ModelError
from accord.model.card import loading_code, look_at
from accord.model.classifiers import ClassFacts, head_shape, read_labels, refuse_classes
from accord.model.export import save_classifier
from accord.model.forward import forward
from accord.model.loading import locate
from accord.model.merging import merge
from model.kinds import KINDS, ONE_EACH

LABELS = ("bad", "good", "odd")
AUTOMATIC = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
IDS = [[5, 80, 9, 200, 31, 7], [6, 30, 12], [44], [7, 8, 9, 10, 11, 12, 13, 14, 15]]
LEVELS = pytest.mark.parametrize("level", ["sequence", "token"])
FAMILIES = pytest.mark.parametrize("of", ["llama_grouped", "gpt2"])


def packed(level: str, ids: list[list[int]] = IDS) -> TokenBatch:
    """A class is read at the last token of each sequence, or at the first and then every second one."""
    masks = [[t == len(row) - 1 if level == "sequence" else t % 2 == 0 for t in range(len(row))] for row in ids]
    return TokenBatch.from_sequences(ids, masks, classes_T=torch.zeros(sum(map(len, ids)), dtype=torch.long))


def made(make_roles, folder: Path, kind: str | None, facts: ClassFacts, shake):
    roles = make_roles(folder, None if kind is None else KINDS[kind])
    roles.add_classifier(facts)
    shake(roles.trainable("classifier").values(), 0.2)
    return roles


def logits(roles, batch: TokenBatch) -> torch.Tensor:
    with torch.no_grad(), roles.use("classifier") as role:
        return forward(role, batch).class_logits_KC


def plain(folder: Path, base: Path, level: str):
    """A saved classifier in plain transformers and peft."""
    if not (folder / "adapter_config.json").is_file():
        return AUTOMATIC[level].from_pretrained(folder, attn_implementation="eager").eval()
    model = AUTOMATIC[level].from_pretrained(base, num_labels=len(LABELS), attn_implementation="eager")
    return peft.PeftModel.from_pretrained(model, folder).eval()


def plain_logits(model, level: str, ids: list[list[int]] = IDS) -> torch.Tensor:
    model.config.pad_token_id = None
    parts = []
    for row in ids:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([row])).logits[0]
        # Embeddings of virtual tokens have logits too, before those of the text.
        parts.append(out[None] if level == "sequence" else out[-len(row) :][::2])
    return torch.cat(parts)


@LEVELS
@FAMILIES
@pytest.mark.parametrize("kind", [None, *ONE_EACH])
def test_saved_and_loaded_in_plain_libraries_the_logits_are_equal(
    kind, of, level, model_folder, make_roles, shake, tmp_path
):
    base, facts = model_folder(of), ClassFacts(level, LABELS)
    roles = made(make_roles, base, kind, facts, shake)
    got = logits(roles, packed(level))
    assert got.dtype == torch.float32 and got.std(dim=0).min() > 1e-2
    save_classifier(roles, tmp_path, facts)
    wanted = plain_logits(plain(tmp_path, base, level), level)
    torch.testing.assert_close(got, wanted, atol=5e-5, rtol=1e-4)
    assert read_labels(locate(str(tmp_path))) == facts
    if kind is None:
        config = AutoConfig.from_pretrained(tmp_path)
        assert config.id2label == dict(enumerate(LABELS)) and config.label2id == {"bad": 0, "good": 1, "odd": 2}
    else:
        stored = json.loads((tmp_path / "adapter_config.json").read_text())
        assert stored["task_type"] == {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}[level]
        again = make_roles(tmp_path, KINDS[kind])
        again.add_classifier(facts)
        torch.testing.assert_close(logits(again, packed(level)), got, atol=1e-5, rtol=1e-5)


@LEVELS
@FAMILIES
def test_merged_it_is_a_whole_classifier_with_its_names(of, level, model_folder, make_roles, shake, tmp_path):
    base, facts = model_folder(of), ClassFacts(level, LABELS)
    roles = made(make_roles, base, "lora", facts, shake)
    save_classifier(roles, tmp_path / "adapter", facts)
    merge(tmp_path / "adapter", tmp_path / "whole", torch.float32)
    wanted = plain_logits(plain(tmp_path / "whole", base, level), level)
    torch.testing.assert_close(logits(roles, packed(level)), wanted, atol=5e-5, rtol=1e-4)
    assert read_labels(locate(str(tmp_path / "whole"))) == facts


@pytest.mark.parametrize("micro", [[0], [3, 1], [2]])
def test_a_part_of_the_batch_says_the_same(micro, model_folder, make_roles, shake):
    roles = made(make_roles, model_folder("llama"), "prefix", ClassFacts("token", LABELS), shake)
    batch = packed("token")
    whole, sizes = logits(roles, batch), [(len(row) + 1) // 2 for row in IDS]
    wanted = torch.cat([whole.split(sizes)[n] for n in micro])
    torch.testing.assert_close(logits(roles, batch.select(micro)), wanted, atol=1e-5, rtol=1e-5)


def test_the_head_starts_at_random_by_the_seed_and_learns(model_folder, make_roles):
    heads = []
    for seed in (1, 1, 2):
        roles = make_roles(model_folder("gpt2"), KINDS["prefix"])
        torch.manual_seed(seed)
        roles.add_classifier(ClassFacts("token", LABELS))
        weights = roles.trainable("classifier")
        assert {key for key in weights if key.startswith("class_head")} == {"class_head.weight", "class_head.bias"}
        heads.append(weights["class_head.weight"])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert float(heads[0].detach().std()) == pytest.approx(roles.model.config.initializer_range, rel=0.3)
    with roles.use("classifier", train=True) as role:
        forward(role, packed("token")).class_logits_KC.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights.values())


def test_another_set_of_labels_gets_a_fresh_head(model_folder, make_roles, shake, tmp_path):
    facts = ClassFacts("sequence", LABELS)
    save_classifier(made(make_roles, model_folder("llama"), "lora", facts, shake), tmp_path, facts)
    trained = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.score.weight"]
    for labels, same in ((LABELS, True), (("bad", "odd", "good"), False), (("a", "b"), False)):
        roles = make_roles(tmp_path, KINDS["lora"])
        roles.add_classifier(ClassFacts("sequence", labels))
        head = roles.roles["classifier"].class_head.weight
        assert (head.shape == trained.shape and torch.equal(head, trained)) == same


@pytest.mark.parametrize(
    ("of", "level", "why"),
    [
        ("t5", "sequence", "is an encoder-decoder model"),
        ("opt", "token", "transformers has no token classifier for opt, .*algorithm.level: sequence"),
        ("mamba", "sequence", "transformers has no sequence classifier for mamba"),
    ],
)
def test_families_without_a_classifier_are_refused(of, level, why, model_folder):
    folder = model_folder(of)
    with pytest.raises(ModelError, match=why):
        head_shape(str(folder), AutoConfig.from_pretrained(folder), level)


def test_one_number_cannot_be_read_of_classes(model_folder, make_roles, shake, tmp_path):
    base, facts = model_folder("llama"), ClassFacts("sequence", LABELS)
    for kind in ("lora", None):
        folder = tmp_path / str(kind)
        save_classifier(made(make_roles, base, kind, facts, shake), folder, facts)
        with pytest.raises(
            ModelError, match=r"labels bad, good, odd, .*reward: \{classifier: \{model: .*, label: odd\}\}"
        ):
            refuse_classes(str(folder), locate(str(folder)), "a reward model")
        with pytest.raises(ModelError, match="cannot be a reward model"):
            make_roles(base, KINDS["lora"]).add_reward(str(folder))
    refuse_classes(str(base), locate(str(base)), "a reward model")


def test_a_broken_file_of_labels_is_named(model_folder, make_roles, shake, tmp_path):
    facts = ClassFacts("token", LABELS)
    save_classifier(made(make_roles, model_folder("llama"), "lora", facts, shake), tmp_path, facts)
    location = locate(str(tmp_path))
    for text in ("{", '{"level": "word", "labels": ["a", "b"]}', '{"level": "token", "labels": ["a", "a"]}', "{}"):
        (tmp_path / "accord_labels.json").write_text(text)
        with pytest.raises(ModelError, match=r"accord_labels\.json"):
            read_labels(location)
    (tmp_path / "accord_labels.json").unlink()
    assert read_labels(location) == ClassFacts("token", ("LABEL_0", "LABEL_1", "LABEL_2"))


def test_the_card_loads_it(model_folder, make_roles, shake, tmp_path):
    base, facts = model_folder("gpt2"), ClassFacts("token", LABELS)
    roles = made(make_roles, base, "lora", facts, shake)
    save_classifier(roles, tmp_path, facts)
    saved = look_at(tmp_path)
    assert (saved.kind, saved.task, saved.labels) == ("tagger", "token-classification", LABELS)
    code = (
        loading_code(saved)
        .strip("`")
        .removeprefix("python\n")
        .replace("FOLDER", str(tmp_path))
        .replace('"BASE"', f'"{base}"')
    )
    names: dict = {}
    exec(code.split("```")[0], names)
    assert names["base"].config.id2label == dict(enumerate(LABELS))
    got = plain_logits(names["model"].eval(), "token")
    torch.testing.assert_close(got, logits(roles, packed("token")), atol=5e-5, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id is not None
