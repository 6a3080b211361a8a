"""Invariant 10: what is saved loads in plain transformers and peft, and gives the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from accord.batch import TokenBatch
from accord.config import LoraConfig, ReferenceConfig
from accord.model.export import distinct_padding, save_policy, save_scorer
from accord.model.forward import forward
from accord.model.roles import Roles

LORA = LoraConfig(r=4, alpha=8)


def packed_logprobs(roles: Roles, ids: list[list[int]]) -> torch.Tensor:
    batch = TokenBatch.from_sequences(ids, [[t > 0 for t in range(len(s))] for s in ids])
    with torch.no_grad(), roles.use("policy") as role:
        return forward(role, batch).logprobs_T


def plain_logprobs(model, ids: list[list[int]]) -> torch.Tensor:
    parts = []
    for sequence in ids:
        tokens = torch.tensor([sequence])
        with torch.no_grad():
            logprobs = model.eval()(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
        parts += [torch.zeros(1), logprobs.gather(-1, tokens[0, 1:, None]).squeeze(-1)]
    return torch.cat(parts)


def padded_scores(model, ids: list[list[int]], padding: int) -> torch.Tensor:
    """Scores of a right-padded batch, as anyone would compute them with transformers."""
    longest = max(map(len, ids))
    tokens = torch.tensor([s + [padding] * (longest - len(s)) for s in ids])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in ids])
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=mask).logits[:, 0]


def test_a_policy_adapter_loads_in_plain_peft(family, model_folder, make_roles, ids, tmp_path: Path, shake) -> None:
    assert_adapter_loads_in_plain_peft(
        make_roles(model_folder(family), LORA), model_folder(family), ids, tmp_path, shake
    )


def test_an_adapter_that_went_on_from_an_adapter_loads_in_plain_peft(
    policy_adapter: Path, model_folder, make_roles, ids, tmp_path: Path, shake
) -> None:
    """What is saved is relative to the bare base, and holds the start's part too."""
    assert_adapter_loads_in_plain_peft(make_roles(policy_adapter, LORA), model_folder("llama"), ids, tmp_path, shake)


def assert_adapter_loads_in_plain_peft(roles: Roles, base_folder: Path, ids, tmp_path: Path, shake) -> None:
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    shake(roles.trainable("policy").values())
    save_policy(roles, tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    before = plain_logprobs(base, ids)
    loaded = plain_logprobs(peft.PeftModel.from_pretrained(base, tmp_path / "model"), ids)
    torch.testing.assert_close(loaded, packed_logprobs(roles, ids), atol=5e-5, rtol=1e-5)
    assert not torch.allclose(loaded, before, atol=0.1)
    automatic = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(plain_logprobs(automatic, ids), loaded)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == roles.tokenizer.get_vocab()
    names = set(json.loads((tmp_path / "model" / "adapter_config.json").read_text()))
    assert "base_model_name_or_path" in names and not any("accord" in name for name in names)


def test_a_whole_policy_loads_in_plain_transformers(
    family, model_folder, make_roles, ids, tmp_path: Path, shake
) -> None:
    roles = make_roles(model_folder(family))
    roles.add_policy()
    shake(roles.trainable("policy").values())
    save_policy(roles, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain_logprobs(model, ids), packed_logprobs(roles, ids), atol=5e-5, rtol=1e-5)
    assert not any("accord" in file.read_text() for file in (tmp_path / "model").glob("*.json"))
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_saved_policy_is_the_start_of_the_next_run(make_roles, model_folder, ids, tmp_path: Path, shake) -> None:
    for adapter in (LORA, None):
        roles = make_roles(model_folder("qwen3"), adapter)
        roles.add_policy()
        shake(roles.trainable("policy").values())
        folder = tmp_path / ("adapter" if adapter else "full")
        save_policy(roles, folder)
        again = make_roles(folder, adapter)
        again.add_policy()
        assert torch.equal(packed_logprobs(again, ids), packed_logprobs(roles, ids))


def spoil_padding(folder: Path, case: str) -> None:
    """Make the base's tokenizer and config as many checkpoints have them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if case == "eos is pad":
        tokenizer.pad_token = tokenizer.eos_token
    elif case == "no pad":
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"pad_token_id": tokenizer.pad_token_id}))


@pytest.mark.parametrize("case", ["own pad", "eos is pad", "no pad"])
@pytest.mark.parametrize("adapter", [LORA, None], ids=["adapter", "full"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_a_reward_model_gives_the_same_scores_in_plain_transformers(
    name, adapter, case, model_folder, make_roles, ids, tmp_path: Path, shake
) -> None:
    base = Path(shutil.copytree(model_folder(name), tmp_path / "base"))
    spoil_padding(base, case)
    roles = make_roles(base, adapter)
    roles.add_scorer()
    shake(roles.trainable("reward").values())
    eos = roles.tokenizer.eos_token_id
    ids = [[*sequence, eos] for sequence in ids]  # the score that was trained is the one at EOS
    with torch.no_grad(), roles.use("reward") as role:
        batch = TokenBatch.from_sequences(ids, [[False] * len(s) for s in ids])
        wanted = forward(role, batch).scores_N
    save_scorer(roles, tmp_path / "model")

    padding = AutoTokenizer.from_pretrained(tmp_path / "model").pad_token_id
    assert padding is not None and padding != eos
    if adapter is None:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        assert model.config.pad_token_id == padding and model.config.num_labels == 1
        assert "accord" not in (tmp_path / "model" / "config.json").read_text()
    else:
        trunk = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=padding)
        model = peft.PeftModel.from_pretrained(trunk, tmp_path / "model")
        automatic = peft.AutoPeftModelForSequenceClassification.from_pretrained(
            tmp_path / "model", num_labels=1, pad_token_id=padding
        )
        torch.testing.assert_close(padded_scores(automatic, ids, padding), wanted, atol=5e-5, rtol=1e-5)
    assert wanted.std() > 0.02
    torch.testing.assert_close(padded_scores(model, ids, padding), wanted, atol=5e-5, rtol=1e-5)
    alone = torch.cat([padded_scores(model, [sequence], padding) for sequence in ids])
    torch.testing.assert_close(alone, wanted, atol=5e-5, rtol=1e-5)


def test_a_scorer_s_training_is_not_disturbed_by_saving(make_roles, model_folder, tmp_path: Path, shake, batch) -> None:
    roles = make_roles(model_folder("llama"))
    roles.add_scorer()
    shake(roles.trainable("reward").values())
    padding, labels = roles.tokenizer.pad_token, roles.model.config.num_labels
    role = roles.roles["reward"]
    before = forward(role, batch).scores_N
    save_scorer(roles, tmp_path / "model")
    after = forward(role, batch).scores_N
    assert torch.equal(before, after)
    after.sum().backward()
    assert all(weight.grad is not None for name, weight in roles.trainable("reward").items())
    assert (roles.tokenizer.pad_token, roles.model.config.num_labels) == (padding, labels)


def test_distinct_padding(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    fresh = AutoTokenizer.from_pretrained(tmp_path)
    assert distinct_padding(fresh) == tokenizer.pad_token_id
    fresh.pad_token = fresh.eos_token
    assert distinct_padding(fresh) == fresh.bos_token_id == fresh.pad_token_id
    bare = AutoTokenizer.from_pretrained(tmp_path, bos_token=None)
    bare.pad_token = bare.eos_token
    bare.bos_token = None
    assert distinct_padding(bare) is None and bare.pad_token is None
