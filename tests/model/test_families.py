"""Each family: what it computes is what plain transformers computes on one sequence at a time, and what it cannot do is said."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import textwrap
from itertools import pairwise
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from accord.batch import TokenBatch
from accord.config import LoraConfig
from accord.errors import ModelError
from accord.model.attention import flash_attention, segment_attention
from accord.model.export import save_policy, save_scorer
from accord.model.forward import forward
from accord.model.loading import load_weights
from accord.model.reading import CAPS, FACTORS, OWN_MASKS, encoder_input, way_of
from model.kinds import KINDS

WAYS = {
    "llama": "packed",
    "qwen3": "packed",
    "mistral": "packed",
    "gemma3": "packed",
    "gemma3_images": "packed",
    "gpt2": "packed",
    "gpt_neox": "packed",
    "opt": "packed",
    "mixtral": "packed",
    "qwen3_moe": "packed",
    "cohere": "packed",
    "granite": "packed",
    "jetmoe": "packed",
    "phi3_longrope": "packed",
    "bloom": "rows",
    "phimoe": "rows",
    "qwen2_moe": "rows",
    "doge": "rows",
    "jamba": "rows",
    "mamba": "rows",
    "falcon_h1": "rows",
    "t5": "encoder-decoder",
    "t5_unscaled": "encoder-decoder",
    "mt5": "encoder-decoder",
    "umt5": "encoder-decoder",
}
PROMPTS = (4, 2, 9, 2, 4, 1)
RESPONSES = (5, 3, 8, 3, 1, 6)


@pytest.fixture(params=WAYS)
def each(request: pytest.FixtureRequest) -> str:
    """Each family."""
    return request.param


@pytest.fixture
def dialogue() -> TokenBatch:
    """Prompts and responses of several lengths, two of them equal; the responses are targets."""
    generator = torch.Generator().manual_seed(3)
    ids = [
        torch.randint(8, 250, (p + r,), generator=generator).tolist() for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    masks = [[False] * p + [True] * r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    return TokenBatch.from_sequences(ids, masks)


def plain_model(folder) -> PreTrainedModel:
    """As transformers alone loads and runs it."""
    model = AutoModelForSeq2SeqLM if (folder.name.startswith(("t5", "mt5", "umt5"))) else AutoModelForCausalLM
    return model.from_pretrained(folder, attn_implementation="eager").eval()


def one_by_one(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Log-probability of each target token by plain transformers, float32 [T], one sequence after the other."""
    result = torch.zeros(batch.tokens)
    for n in range(batch.sequences):
        start, end = batch.cu_seqlens[n : n + 2].tolist()
        ids, mask = batch.input_ids_T[start:end], batch.target_mask_T[start:end]
        prompt = int(mask.nonzero()[0])
        if model.config.is_encoder_decoder:
            encoder = torch.tensor([encoder_input(ids[:prompt].tolist(), model.config)])
            logits = model(input_ids=encoder, labels=ids[None, prompt:]).logits[0]
        else:
            logits = model(input_ids=ids[None], use_cache=False).logits[0, prompt - 1 : -1]
        result[start + prompt : end] = logits.float().log_softmax(-1).gather(-1, ids[prompt:, None])[:, 0]
    return result


def test_log_probabilities_and_gradients_are_those_of_one_sequence_at_a_time(
    each: str, model_folder, make_roles, dialogue: TokenBatch
) -> None:
    folder = model_folder(each)
    roles = make_roles(folder)
    roles.add_policy()
    assert way_of(roles.roles["policy"].trunk) == WAYS[each]
    weights = torch.linspace(-1, 1, dialogue.tokens)
    with roles.use("policy", train=True) as role:
        got = forward(role, dialogue).logprobs_T
        assert got is not None
        (got * weights).sum().backward()
    plain = plain_model(folder)
    want = one_by_one(plain, dialogue)
    (want * weights).sum().backward()
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    assert len(got[dialogue.target_mask_T].unique()) > 20
    expected = dict(plain.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    compared = 0
    for name, parameter in roles.model.named_parameters():
        gradient = expected[name].grad
        if gradient is None:
            assert parameter.grad is None, name
            continue
        compared += 1
        scale = float(gradient.abs().max()) + 0.01 * largest  # some are 0 but for rounding, such as a key's bias
        torch.testing.assert_close(parameter.grad / scale, gradient / scale, atol=2e-4, rtol=1e-3, msg=name)
    assert compared > 5


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        ("prompt", "t5"),
        ("prompt_text", "umt5"),
        ("ptuning", "mt5"),
        ("ptuning_lstm", "t5"),
        ("prefix", "t5"),
        ("prefix_projected", "umt5"),
        ("prefix", "t5 of other widths"),
    ],
)
def test_encoder_decoders_read_virtual_tokens_as_in_plain_peft(
    kind: str, of: str, model_folder, make_roles, dialogue: TokenBatch, shake, tmp_path: Path
) -> None:
    family, _, other = of.partition(" of ")
    folder = model_folder(family)
    if other:  # heads are wider than the layers together, and the decoder has more layers
        config = AutoConfig.from_pretrained(folder)
        config.d_kv, config.num_decoder_layers = 12, 3
        torch.manual_seed(0)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "t5")
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "t5")
        folder = tmp_path / "t5"
    roles = make_roles(folder, KINDS[kind])
    roles.add_policy()
    shake(roles.trainable("policy").values(), 0.3)
    saved = tmp_path / "saved"
    save_policy(roles, saved)
    plain = peft.PeftModel.from_pretrained(plain_model(folder), saved, is_trainable=False).eval()
    weights = torch.linspace(-1, 1, dialogue.tokens)
    with roles.use("policy", train=True) as role:
        got = forward(role, dialogue).logprobs_T
        assert got is not None
        (got * weights).sum().backward()
    embeddings = plain.prompt_encoder["default"].embedding.weight.requires_grad_()
    want = one_by_one(plain, dialogue)
    (want * weights).sum().backward()
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    assert (want - one_by_one(plain.get_base_model(), dialogue)).abs().max() > 1e-2, "the virtual tokens are seen"
    if kind in (
        "prompt",
        "prompt_text",
        "prefix",
    ):  # networks are not saved, so theirs have nothing to be compared with
        (ours,) = roles.trainable("policy").values()
        torch.testing.assert_close(ours.grad, embeddings.grad, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in roles.model.parameters())


SAVED = (
    "gemma3",
    "gemma3_images",
    "opt",
    "mixtral",
    "qwen3_moe",
    "granite",
    "bloom",
    "jamba",
    "mamba",
    "falcon_h1",
    "t5",
    "t5_unscaled",
)
"""The other families are in test_export.py."""
SCORERS = ("gemma3", "gemma3_images", "opt", "mixtral", "qwen3_moe", "bloom", "jamba")


@pytest.mark.parametrize("family", SAVED)
@pytest.mark.parametrize("adapter", [LoraConfig(r=4, alpha=8), None], ids=["adapter", "full"])
def test_a_saved_policy_gives_the_same_in_plain_transformers(
    family: str, adapter: LoraConfig | None, model_folder, make_roles, shake, dialogue: TokenBatch, tmp_path: Path
) -> None:
    folder = model_folder(family)
    roles = make_roles(folder, adapter)
    roles.add_policy()
    shake(roles.trainable("policy").values())
    save_policy(roles, tmp_path / family)
    with torch.no_grad(), roles.use("policy") as role:
        wanted = forward(role, dialogue).logprobs_T
        before = one_by_one(plain_model(folder), dialogue)
        if adapter is None:
            model = plain_model(tmp_path / family)
        else:
            model = peft.PeftModel.from_pretrained(plain_model(folder), str(tmp_path / family)).eval()
            assert AUTOMATIC[model.peft_config["default"].task_type] is (
                AutoModelForSeq2SeqLM if WAYS[family] == "encoder-decoder" else AutoModelForCausalLM
            )
        torch.testing.assert_close(one_by_one(model, dialogue), wanted, atol=5e-5, rtol=1e-5)
        assert not torch.allclose(wanted, before, atol=0.05)
        again = make_roles(tmp_path / family, adapter)
        again.add_policy()
        with again.use("policy") as role:
            assert torch.equal(forward(role, dialogue).logprobs_T, wanted)


AUTOMATIC = {"SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM, "CAUSAL_LM": AutoModelForCausalLM}


@pytest.mark.parametrize("family", SCORERS)
@pytest.mark.parametrize("adapter", [LoraConfig(r=4, alpha=8), None], ids=["adapter", "full"])
def test_a_saved_reward_model_gives_the_same_in_plain_transformers(
    family: str, adapter: LoraConfig | None, model_folder, make_roles, shake, dialogue: TokenBatch, tmp_path: Path
) -> None:
    folder = model_folder(family)
    roles = make_roles(folder, adapter)
    roles.add_scorer()
    shake(roles.trainable("reward").values())
    save_scorer(roles, tmp_path / "model")
    bounds = dialogue.cu_seqlens.tolist()
    sequences = [dialogue.input_ids_T[start:end][None] for start, end in pairwise(bounds)]
    with torch.no_grad(), roles.use("reward") as role:
        wanted = forward(role, dialogue).scores_N
        if adapter is None:
            model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
        else:
            trunk = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
            model = peft.PeftModel.from_pretrained(trunk, str(tmp_path / "model")).eval()
        scores = torch.cat([model(input_ids=ids, use_cache=False).logits[:, 0] for ids in sequences])
        torch.testing.assert_close(scores, wanted, atol=5e-5, rtol=1e-4)
        assert wanted.std() > 0.02
        policy = make_roles(folder, LoraConfig(r=4))  # and as the reward of a later run
        policy.add_reward(str(tmp_path / "model"))
        with policy.use("reward") as role:
            torch.testing.assert_close(forward(role, dialogue).scores_N, wanted, atol=1e-5, rtol=1e-5)


def test_image_towers_and_fused_layers_get_no_adapter(model_folder, make_roles) -> None:
    for family, left_out, taken in (
        ("gemma3_images", "vision_tower", "language_model"),
        ("mamba", "out_proj", "in_proj"),
        ("mamba", "dt_proj", "in_proj"),
        ("mamba", "x_proj", "in_proj"),
        ("jamba", "dt_proj", "mamba.x_proj"),
        ("falcon_h1", "out_proj", "in_proj"),
        ("jamba", "nothing", "mamba.out_proj"),
    ):
        roles = make_roles(model_folder(family), LoraConfig(r=2))
        roles.add_policy()
        names = list(roles.trainable("policy"))
        assert any(taken in name for name in names), family
        assert not any(left_out in name or "lm_head" in name for name in names), family


@pytest.mark.parametrize("family", ["mamba", "jamba", "falcon_h1", "bloom", "t5"])
def test_all_that_counts_as_learnt_takes_a_gradient(family: str, model_folder, make_roles, ids, shake) -> None:
    roles = make_roles(model_folder(family), LoraConfig(r=2))
    roles.add_policy()
    weights = roles.trainable("policy")
    shake(weights.values())
    batch = TokenBatch.from_sequences(ids[:3], [[t > 1 for t in range(len(sequence))] for sequence in ids[:3]])
    with roles.use("policy", train=True) as role:
        forward(role, batch).logprobs_T.sum().backward()
    idle = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
    assert idle == []


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_and_router_are_adapted_at_one_scale(family: str, model_folder, make_roles, recwarn) -> None:
    roles = make_roles(model_folder(family), LoraConfig(r=2, alpha=6))
    roles.add_policy()
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in roles.adapters.wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }
    ranks = {name: module.r["policy"] for name, module in layers.items() if name.startswith("model.layers.0.mlp")}
    assert ranks == {
        "model.layers.0.mlp.gate": 2,
        "model.layers.0.mlp.experts": 2,  # down
        "model.layers.0.mlp.experts.base_layer": 4,  # gate and up, one weight
    }
    assert {module.scaling["policy"] for module in layers.values()} == {3.0}
    assert not [one for one in recwarn if "pattern keys" in str(one.message)]
    experts = [name for name, _ in roles.trainable("policy").items() if "experts" in name]
    only = make_roles(model_folder(family), LoraConfig(r=2, targets=["q_proj", "v_proj"]))
    only.add_policy()
    assert experts
    assert not [name for name in only.trainable("policy") if "experts" in name or "gate" in name]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "t5",
            r"is an encoder-decoder model \(t5\), whose classifier in transformers reads no score at the last token",
        ),
        ("mamba", "transformers has no sequence classifier for mamba, so a reward model could not be saved"),
        ("cohere", "transformers has no sequence classifier for cohere"),
        ("granite", "transformers has no sequence classifier for granite"),
    ],
)
def test_families_without_a_classifier_train_no_reward_model(
    family: str, message: str, model_folder, make_roles
) -> None:
    with pytest.raises(ModelError, match=message):
        make_roles(model_folder(family)).add_scorer()


def test_what_a_family_cannot_do_is_said_before_weights_are_read(model_folder, tmp_path: Path) -> None:
    """The folders hold a config and no weights."""
    for family, changes, message in (
        (
            "gemma2",
            {},
            "sets final_logit_softcapping = 30.0, a transform of the logits that is not supported for gemma2",
        ),
        ("llama", {"logits_scaling": 2.0}, "sets logits_scaling = 2.0, a transform of the logits"),
        ("qwen3", {"lm_head_multiplier": 0.5}, "sets lm_head_multiplier = 0.5, a transform of the logits"),
        ("gemma3", {"final_logit_softcapping": 1.0}, "sets final_logit_softcapping = 1.0, a transform of the logits"),
        ("mistral", {"model_type": "recurrent_gemma"}, "sets logits_soft_cap = 30.0, a transform of the logits"),
        (
            "gpt2",
            {"model_type": "bert", "num_hidden_layers": 1},
            "weights between its hidden states and its output layer, such as cls.predictions.transform.dense.weight",
        ),
        ("t5", {"model_type": "bart"}, "of encoder-decoder families t5, mt5, umt5 are known here, and not bart"),
    ):
        file = model_folder(family) / "config.json"
        folder = tmp_path / family
        folder.mkdir()
        config = json.loads(file.read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=message):
            load_weights(str(folder), torch.float32, torch.device("cpu"))


def test_whatever_transformers_families_do_to_their_logits_is_known() -> None:
    """Each causal model that multiplies, divides or caps on the way to its logits names a key that is asked for."""
    transforming = {}
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        for name in [names] if isinstance(names, str) else names:
            source = inspect.getsource(getattr(transformers, name).forward)
            if lines := [line for line in ast.walk(ast.parse(textwrap.dedent(source))) if transforms(line)]:
                transforming[name] = "\n".join(ast.unparse(line) for line in lines), source
    assert len(transforming) > 20
    for name, (lines, source) in transforming.items():
        assert any(key in source for key in (*FACTORS, *CAPS)), f"{name}:\n{lines}"


SECONDARY = ("cohere_compass", "gemma4", "phi4_multimodal")
"""Families with another attention beside that of their text model, which has no window."""


def test_whoever_has_windows_hands_them_to_its_attention() -> None:
    """Packed attention gets no mask: a family that tells its window by the mask alone has to be known as such."""
    windowed, silent = 0, set()
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        source = file.read_text(encoding="utf-8")
        if (
            "attention_interface(" not in source
            or not re.search(r"^class \w+ForCausalLM", source, re.MULTILINE)
            or "sliding_window" not in source
        ):
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "attention_interface"
        ]
        windowed += 1
        if any("sliding_window" not in {word.arg for word in call.keywords} for call in calls):
            silent.add(file.parent.name)
    assert windowed > 20
    assert silent - set(SECONDARY) <= set(OWN_MASKS)


def test_what_packed_attention_would_leave_out_is_refused(model_folder, make_roles, dialogue: TokenBatch) -> None:
    roles = make_roles(model_folder("gemma3"))
    roles.add_policy()
    layer = roles.model.base_model.layers[0].self_attn
    layer.is_causal = False
    with roles.use("policy") as role, pytest.raises(ModelError, match="Gemma3Attention sees what comes later, too"):
        forward(role, dialogue)
    query = torch.zeros(1, 4, 3, 8)
    with pytest.raises(ModelError, match="makes a mask of its own"):
        segment_attention(torch.nn.Identity(), query, query, query, torch.zeros(3, 3), segment_bounds=[0, 3])
    with pytest.raises(ModelError, match="sees what comes later, too"):
        flash_attention(layer, query, query, query, None, segment_bounds=[0, 3])


def transforms(node: ast.AST) -> bool:
    """Whether a line of code sets something other than a loss to a product, a quotient or what is capped."""
    if not isinstance(node, ast.Assign) or "loss" in ast.unparse(node.targets[0]):
        return False
    return any(
        (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult | ast.Div))
        or (isinstance(part, ast.Call) and ast.unparse(part.func).endswith(("cap", "tanh", ".mul", ".div")))
        for part in ast.walk(node.value)
    )


def test_soft_capped_attention_is_read_in_rows(model_folder, make_roles, dialogue: TokenBatch, tmp_path: Path) -> None:
    """SDPA would leave the cap out, so transformers' plain attention computes it."""
    folder = Path(shutil.copytree(model_folder("gemma2"), tmp_path / "gemma2"))
    file = folder / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"final_logit_softcapping": None, "attn_logit_softcapping": 0.5})
    )
    roles = make_roles(folder)
    roles.add_policy()
    assert way_of(roles.roles["policy"].trunk) == "rows"
    with torch.no_grad(), roles.use("policy") as role:
        got = forward(role, dialogue).logprobs_T
        torch.testing.assert_close(got, one_by_one(plain_model(folder), dialogue), atol=2e-5, rtol=1e-5)


def test_sequences_without_targets_change_nothing_in_an_encoder_decoder(model_folder, make_roles) -> None:
    """Such as fill up the steps of online DPO and of rejection sampling."""
    roles = make_roles(model_folder("t5"))
    roles.add_policy()
    ids, masks = [[5, 6, 7, 8], [9, 10, 11]], [[False, True, True, True], [False, False, True]]
    fill = [[5, 6, 7, 8], [12], [13, 14]]
    with torch.no_grad(), roles.use("policy") as role:
        wanted = forward(role, TokenBatch.from_sequences(ids, masks)).logprobs_T
        mixed = TokenBatch.from_sequences(
            [ids[0], *fill, ids[1]], [masks[0], [False] * 4, [False], [False] * 2, masks[1]]
        )
        got = forward(role, mixed).logprobs_T
    assert got is not None and wanted is not None
    torch.testing.assert_close(got[mixed.target_mask_T], wanted[[1, 2, 3, 6]])
    assert not got[~mixed.target_mask_T].any()


def test_the_encoder_reads_the_prompt_and_one_eos(model_folder, make_roles) -> None:
    config = make_roles(model_folder("t5")).model.config
    eos = config.eos_token_id
    assert encoder_input((4, 5), config) == [4, 5, eos] == encoder_input([4, 5, eos], config)
