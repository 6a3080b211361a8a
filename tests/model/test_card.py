"""The card of a saved model: front matter that the hub reads, and code that loads what lies beside it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from accord.batch import TokenBatch
from accord.config import LoraConfig
from accord.errors import ModelError
from accord.model.card import SavedModel, Section, loading_code, look_at, on_hub, write_card
from accord.model.classifiers import ClassFacts
from accord.model.export import save_classifier, save_policy, save_scorer
from accord.model.forward import forward


def code_of(card: Path) -> str:
    found = re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found.group(1)


@pytest.mark.parametrize(
    ("family", "adapter", "reward", "library", "task"),
    [
        ("llama", None, False, "transformers", "text-generation"),
        ("llama", LoraConfig(r=2), False, "peft", "text-generation"),
        ("llama", None, True, "transformers", "text-classification"),
        ("llama", LoraConfig(r=2), True, "peft", "text-classification"),
        ("t5", None, False, "transformers", "text2text-generation"),
        ("t5", LoraConfig(r=2), False, "peft", "text2text-generation"),
    ],
)
def test_front_matter_and_code_fit_what_was_saved(
    family: str, adapter, reward: bool, library: str, task: str, model_folder, make_roles, tmp_path: Path
) -> None:
    roles = make_roles(model_folder(family), adapter)
    if reward:
        roles.add_scorer()
        save_scorer(roles, tmp_path / "model")
    else:
        roles.add_policy()
        save_policy(roles, tmp_path / "model")
    card = write_card(tmp_path / "model", tags=("ppo",), sections=[Section("Data", "rows of mine")])
    read = ModelCard.load(card)
    assert (read.data.library_name, read.data.pipeline_tag, read.data.tags) == (library, task, ["accord", "ppo"])
    assert read.data.base_model is None, "a folder of this machine means nothing to others"
    assert "## Data\n\nrows of mine" in read.text and str(model_folder(family)) not in card.read_text()
    names: dict = {}
    exec(code_of(card).replace("FOLDER", str(tmp_path / "model")).replace("BASE", str(model_folder(family))), names)
    assert names["tokenizer"].get_vocab() == roles.tokenizer.get_vocab()
    with torch.no_grad():
        extra = {"decoder_input_ids": torch.tensor([[1]])} if family == "t5" else {}
        assert names["model"](input_ids=torch.tensor([[5, 6]]), **extra).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["reward", "classifier"])
def test_the_code_gives_the_score_that_was_learnt_where_the_base_pads_with_eos(
    kind, model_folder, make_roles, shake, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(model_folder("llama"), tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": tokenizer.eos_token_id}))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    roles, facts = make_roles(base, LoraConfig(r=2)), ClassFacts("sequence", ("bad", "good"))
    if kind == "reward":
        roles.add_scorer()
    else:
        roles.add_classifier(facts)
    shake(roles.trainable(kind).values())
    ids = [5, 6, 80, tokenizer.eos_token_id]
    batch = TokenBatch.from_sequences([ids], [[False, False, False, kind == "classifier"]])
    with torch.no_grad(), roles.use(kind) as role:
        output = forward(role, batch)
    if kind == "reward":
        save_scorer(roles, tmp_path / "model")
    else:
        save_classifier(roles, tmp_path / "model", facts)
    names: dict = {}
    code = code_of(write_card(tmp_path / "model"))
    exec(code.replace("FOLDER", str(tmp_path / "model")).replace("BASE", str(base)), names)
    with torch.no_grad():
        got = names["model"].eval()(input_ids=torch.tensor([ids])).logits
    wanted = output.scores_N[None] if kind == "reward" else output.class_logits_KC
    torch.testing.assert_close(got, wanted, atol=5e-5, rtol=1e-5)


def test_a_base_on_the_hub_is_named(model_folder, make_roles, tmp_path: Path) -> None:
    roles = make_roles(model_folder("llama"))
    roles.add_policy()
    save_policy(roles, tmp_path / "model")
    write_card(tmp_path / "model", trained_from="org/base")
    assert ModelCard.load(tmp_path / "model" / "README.md").data.base_model == "org/base"
    assert on_hub("org/base") and on_hub("org/base/model.gguf")
    assert not any(on_hub(name) for name in ("/a/b", "./a", "~/a", "word", "a/b/c", str(tmp_path)))
    for model, line in (
        (SavedModel("org/base", "causal"), 'AutoModelForCausalLM.from_pretrained("org/base")'),
        (SavedModel("org/base/x.gguf", "causal"), 'from_pretrained("org/base", gguf_file="x.gguf",'),
    ):
        assert line in loading_code(model) and "BASE" not in loading_code(model)


def test_a_folder_without_a_model_gets_no_card(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        look_at(tmp_path)
    assert list(tmp_path.iterdir()) == []
