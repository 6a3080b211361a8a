"""What all sides of `speed.py` share: how much work a unit is, and how the adapter looks."""

from __future__ import annotations

from typing import Any

LORA = {"r": 16, "alpha": 32}
RATE = 1e-4
Size = dict[str, Any]

FULL: Size = {
    "max_tokens": 512,
    "texts": 16,
    "pairs": 8,
    "trl_rows": 8,
    "trl_pairs": 4,
    "prompts": 4,
    "samples": 8,
    "new_tokens": 64,
    "ppo_prompts": 32,
    "ppo_epochs": 4,
    "ppo_minibatches": 4,
    "requests": 64,
    "longest_response": 256,
    "vocabulary": 262_144,
    "memory_tokens": 4096,
    "growth": [1, 2, 4, 8],
    "growth_rows": 8,
    "growth_tokens": 64,
    "growth_samples": 4,
}
SMALL: Size = FULL | {
    "max_tokens": 96,
    "texts": 4,
    "pairs": 4,
    "trl_rows": 4,
    "trl_pairs": 2,
    "prompts": 2,
    "samples": 4,
    "new_tokens": 8,
    "ppo_prompts": 8,
    "ppo_epochs": 2,
    "ppo_minibatches": 2,
    "requests": 6,
    "longest_response": 16,
    "vocabulary": 8192,
    "memory_tokens": 384,
    "growth": [1, 2],
    "growth_rows": 2,
    "growth_tokens": 16,
    "growth_samples": 2,
}
"""For a smoke test of every row; its figures mean nothing."""
