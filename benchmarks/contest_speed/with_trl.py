"""The sides of `speed.py` that are trl: one optimiser step (or iteration) a unit. python -m contest_speed.with_trl JOB.json

A trainer runs its own loop; a callback at the end of each step answers and waits for the next word.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import peft
import torch
from base_type import DTYPE
from contest_speed.rewards import vowels
from contest_speed.serve import Facts, Turns
from contest_speed.settings import LORA, RATE
from output_layer import read_contiguously
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback


class Turn(TrainerCallback):
    """Answers at the end of a step. The first step, untimed, says that the side is ready."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.tokens = turns, 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See the class."""
        self.turns.answer(tokens=self.tokens)
        self.tokens = 0
        self.turns.wait()


def counted(trainer: type[Any], turn: Turn) -> type[Any]:
    """A trainer that counts the tokens it reads which are not padding."""

    class Counted(trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            turn.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Counted


def common(job: Facts) -> dict[str, Any]:
    """Settings that all trainers share: those of Accord's side."""
    return {
        "output_dir": str(Path(job["work"]) / "trl"),
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": 10_000,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }


def base(job: Facts) -> tuple[Any, Any]:
    """Model and tokenizer."""
    path = job.get("base", job["model"])
    model = read_contiguously(AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE))
    model.config.use_cache = True
    return model, AutoTokenizer.from_pretrained(path)


def adapter(task: str = "CAUSAL_LM") -> Any:
    """The same adapter as Accord's."""
    return peft.LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules="all-linear", task_type=task)


def rows(job: Facts, file: str) -> Any:
    """A file of the job's folder as a dataset."""
    lines = (Path(job["work"]) / file).read_text().splitlines()
    return datasets.Dataset.from_list([json.loads(line) for line in lines])


def _accumulate(count: int, at_once: int) -> dict[str, int]:
    """All rows in one step, so many at once."""
    at_once = min(at_once, count)
    return {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": -(-count // at_once)}


def sft(job: Facts, turn: Turn) -> Any:
    """SFT, padded or packed."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = base(job)
    data = rows(job, job["file"])
    size = job["size"]
    count = len(data)
    options: dict[str, Any] = {"max_length": size["max_tokens"]}
    if job.get("packing"):
        options |= {"packing": True, "packing_strategy": "bfd"}
        tokens = sum(len(tokenizer(text).input_ids) for text in data["text"])
        count = -(-tokens // size["max_tokens"])  # rows once they are packed
    config = SFTConfig(
        **common(job), **_accumulate(count, size["trl_rows"] // (2 if job.get("packing") else 1)), **options
    )
    kind = counted(SFTTrainer, turn)
    return kind(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter())


def reward(job: Facts, turn: Turn) -> Any:
    """A reward model."""
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=DTYPE)
    data = rows(job, "pairs.jsonl")
    config = RewardConfig(
        **common(job), **_accumulate(len(data), job["size"]["trl_pairs"]), max_length=job["size"]["max_tokens"]
    )
    return RewardTrainer(
        model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter("SEQ_CLS")
    )


def dpo(job: Facts, turn: Turn) -> Any:
    """DPO."""
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = base(job)
    data = rows(job, "pairs.jsonl")
    config = DPOConfig(
        **common(job), **_accumulate(len(data), job["size"]["trl_pairs"]), max_length=job["size"]["max_tokens"]
    )
    return DPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter())


def grouped(job: Facts, turn: Turn) -> Any:
    """GRPO and RLOO; a unit is one iteration."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    def score(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return vowels(prompts, completions)

    size = job["size"]
    model, tokenizer = base(job | {"base": str(Path(job["work"]) / "endless")})
    samples = size["prompts"] * size["samples"]
    options = common(job) | _accumulate(samples, size["trl_rows"])
    options |= {"num_generations": size["samples"], "max_completion_length": size["new_tokens"], "temperature": 1.0}
    trainer, config = (
        (GRPOTrainer, GRPOConfig(**options, beta=0.05))
        if job["kind"] == "grpo"
        else (RLOOTrainer, RLOOConfig(**options, beta=0.05))
    )
    data = rows(job, "prompts.jsonl")
    return trainer(model, score, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter())


class Rewarder(nn.Module):
    """A cheap reward in the shape that trl's PPO asks for: a backbone that gives a row's score at each position."""

    base_model_prefix = "backbone"

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.score = nn.Identity()
        self.config = SimpleNamespace(pad_token_id=padding)

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """One number a row."""
        scores = (input_ids % 7).float().mean(1)
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1).contiguous()])


class FloatHead(nn.Module):
    """A value head in float32 that starts at 0, as ours does."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., 1]."""
        return hidden.float() @ self.weight.T


def ppo(job: Facts, turn: Turn) -> Any:
    """PPO of trl 1.12.0, with an adapter and a head that learn on a value model of its own."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    size = job["size"]
    path = str(Path(job["work"]) / "endless")
    model, tokenizer = base(job | {"base": path})
    # It finds the end of a response at the first pad token, so padding must not be EOS.
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda entry: entry[1])
    tokenizer.pad_token = [token for token, _ in added if token != tokenizer.eos_token][-1]
    tokenizer.padding_side = "left"
    value = AutoModelForSequenceClassification.from_pretrained(path, dtype=DTYPE, num_labels=1)
    value.requires_grad_(False)
    names = {name.rpartition(".")[2] for name, part in value.named_modules() if isinstance(part, nn.Linear)} - {"score"}
    lora = peft.LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules=sorted(names))
    # Injected in place, since trl reads the value model's own attributes.
    value = peft.inject_adapter_in_model(lora, value)
    for name, weight in value.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
            weight.requires_grad_(True)
    value.score = FloatHead(value.config.hidden_size)
    texts = rows(job, "ppo_prompts.jsonl")["prompt"]
    data = datasets.Dataset.from_list([{"input_ids": tokenizer(text).input_ids} for text in texts])
    options = common(job)
    del options["max_steps"]
    minibatches = size["ppo_minibatches"]
    config = PPOConfig(
        **options,
        per_device_train_batch_size=size["ppo_prompts"] // minibatches,
        gradient_accumulation_steps=minibatches,
        num_mini_batches=minibatches,
        num_ppo_epochs=size["ppo_epochs"],
        total_episodes=1000 * size["ppo_prompts"],
        local_rollout_forward_batch_size=size["trl_rows"],
        response_length=size["new_tokens"],
        temperature=1.0,
        kl_coef=0.05,
        num_sample_generations=0,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=Rewarder(tokenizer.pad_token_id),
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
        peft_config=adapter(),
    )


KINDS: dict[str, Callable[[Facts, Turn], Any]] = {
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "grpo": grouped,
    "rloo": grouped,
    "ppo": ppo,
}


def main() -> None:
    """See the module."""
    job = json.loads(Path(sys.argv[1]).read_text())
    turn = Turn(Turns())
    trainer = KINDS[job["kind"]](job, turn)
    trainer.add_callback(turn)
    trainer.train()


if __name__ == "__main__":
    main()
