"""One run of `learning.py` with trl: PPO of 1.12.0 (the last that has it), GRPO, RLOO, DPO and KTO of 1.16.0.

Run as a process of its own, with that version of trl on the path: python -m contest.with_trl JOB.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import peft
import torch
from base_type import DTYPE
from contest import settings
from contest.tasks import Task, load_task
from output_layer import read_contiguously
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

Curve = list[dict[str, float]]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says; returns curve and seconds, and leaves the adapter in the job's folder."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    task = load_task(job["task"], tokenizer, Path(job["data"]))
    model = read_contiguously(AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPE))
    model.config.use_cache = True
    lora = peft.LoraConfig(
        r=settings.LORA["r"], lora_alpha=settings.LORA["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    started = time.perf_counter()
    trainer = {"ppo": _ppo, "grpo": _grouped, "rloo": _grouped, "dpo": _offline, "kto": _offline}[job["method"]](
        job, task, model, tokenizer, lora
    )
    trainer.train()
    seconds = time.perf_counter() - started
    learnt = trainer.policy_model if job["method"] == "ppo" else trainer.accelerator.unwrap_model(trainer.model)
    learnt.save_pretrained(str(Path(job["folder"]) / "model"))
    return {"curve": _curve(job, trainer.state.log_history), "seconds": seconds}


def _common(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": job["folder"] + "/trl",
        "learning_rate": job["rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def _grouped(job: dict[str, Any], task: Task, model: Any, tokenizer: Any, lora: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    def score(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return task.reward(prompts=prompts, responses=completions)

    common = _common(job) | {
        "per_device_train_batch_size": job["batch"],
        "num_generations": settings.GROUP,
        "max_completion_length": task.max_new_tokens,
        "temperature": 1.0,
        "max_steps": job["iterations"],
    }
    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt in task.train])
    if job["method"] == "grpo":
        options = {"beta": settings.GRPO["kl"], "epsilon": settings.GRPO["clip"], "loss_type": "grpo"}
        trainer, config = GRPOTrainer, GRPOConfig(**common, **options)
    else:
        trainer, config = RLOOTrainer, RLOOConfig(**common, beta=settings.RLOO["kl"])
    return trainer(model, score, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


class Rewarder(nn.Module):
    """A reward function in the shape that trl's PPO asks for: a backbone and a score layer.

    The backbone gives the score of a row at each of its positions, and the score layer hands it on.
    """

    base_model_prefix = "backbone"

    def __init__(self, task: Task, tokenizer: Any, prompt_tokens: int) -> None:
        super().__init__()
        self.task, self.tokenizer, self.prompt_tokens = task, tokenizer, prompt_tokens
        self.score = nn.Identity()
        self.config = SimpleNamespace(pad_token_id=tokenizer.pad_token_id)

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> Any:
        prompts = self.tokenizer.batch_decode(input_ids[:, : self.prompt_tokens])
        responses = self.tokenizer.batch_decode(input_ids[:, self.prompt_tokens :], skip_special_tokens=True)
        scores = torch.tensor(self.task.reward(prompts=prompts, responses=responses))
        spread = scores[:, None, None].expand(*input_ids.shape, 1).contiguous()
        return SimpleNamespace(hidden_states=[spread])


def _ppo(job: dict[str, Any], task: Task, model: Any, tokenizer: Any, lora: Any) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    # Its PPO finds the end of a response at the first pad token, so padding must not be EOS.
    tokenizer.pad_token = next(token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token)
    value = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=DTYPE, num_labels=1)
    value.requires_grad_(False)
    # Injected in place, since trl reads the value model's own attributes; the critic learns an adapter and a head, as ours does.
    critic = peft.LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, target_modules=_linear_layers(value))
    value = peft.inject_adapter_in_model(critic, value)
    for name, weight in value.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
            weight.requires_grad_(True)
    value.score = _FloatHead(value.config.hidden_size)
    rows = [{"input_ids": tokenizer(prompt, add_special_tokens=False).input_ids} for prompt in task.train]
    lengths = {len(row["input_ids"]) for row in rows}
    assert len(lengths) == 1, f"prompts of {lengths} tokens"
    config = PPOConfig(
        **_common(job),
        per_device_train_batch_size=job["batch"] // settings.PPO["minibatches"],
        gradient_accumulation_steps=settings.PPO["minibatches"],
        num_mini_batches=settings.PPO["minibatches"],
        num_ppo_epochs=settings.PPO["epochs"],
        total_episodes=job["batch"] * job["iterations"],
        local_rollout_forward_batch_size=job["batch"],
        response_length=task.max_new_tokens,
        temperature=1.0,
        stop_token="eos",
        kl_coef=settings.PPO["kl"],
        cliprange=settings.PPO["clip"],
        cliprange_value=settings.PPO["clip"],
        vf_coef=settings.PPO["value_coef"],
        gamma=settings.PPO["gamma"],
        lam=settings.PPO["lam"],
        num_sample_generations=0,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=Rewarder(task, tokenizer, lengths.pop()),
        value_model=value,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows[: job["batch"]]),
        peft_config=lora,
    )


class _FloatHead(nn.Module):
    """A value head in float32 that starts at 0, as ours does."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.float() @ self.weight.T


def _linear_layers(model: nn.Module) -> list[str]:
    return sorted(
        {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)} - {"score"}
    )


def _offline(job: dict[str, Any], task: Task, model: Any, tokenizer: Any, lora: Any) -> Any:
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    common = _common(job) | {
        "per_device_train_batch_size": job["batch"],
        "max_steps": job["iterations"],
        "beta": settings.BETA,
    }
    data = datasets.Dataset.from_list(rows)
    if job["method"] == "dpo":
        return DPOTrainer(
            model, args=DPOConfig(**common), train_dataset=data, processing_class=tokenizer, peft_config=lora
        )
    return KTOTrainer(model, args=KTOConfig(**common), train_dataset=data, processing_class=tokenizer, peft_config=lora)


def _curve(job: dict[str, Any], history: list[dict[str, Any]]) -> Curve:
    """Score on the training prompts after so many responses (or rows), and KL where it is per response."""
    names = {"ppo": "objective/scores", "grpo": "reward", "rloo": "reward", "dpo": "rewards/margins", "kto": "loss"}
    rows = [row for row in history if names[job["method"]] in row]
    return [
        {"samples": job["batch"] * (n + 1), "score": row[names[job["method"]]], "kl": row.get("objective/kl")}
        for n, row in enumerate(rows)
    ]


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    result = run(job)
    (Path(job["folder"]) / "run.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
