"""Which runs `learning.py` makes."""

from __future__ import annotations

from typing import Any

TASKS = ("addition", "sentiment")
CONTEST = ("grpo", "rloo", "dpo", "kto", "ppo")
"""Methods that both libraries have."""
OFFLINE = {
    "dpo": "pairs",
    "orpo": "pairs",
    "simpo": "pairs",
    "cpo": "pairs",
    "kto": "labels",
    "bco": "labels",
    "csft": "scores",
}
"""Methods that learn from rows, and of what kind; drawn from the base once, and the same for all."""

GUIDE_TASK = "addition"
BEST_OF = (2, 4, 8, 16)
"""Best-of-n of the base: what a method has to beat at its KL."""
EIGHT = {"epochs": 2, "minibatches": 4}
"""With one step a batch every ratio is 1, nothing is clipped, and GSPO is GRPO number for number."""
GUIDE: dict[str, dict[str, Any]] = {
    "ppo": {"method": "ppo"},
    "grpo": {"method": "grpo"},
    "dr. grpo": {
        "method": "grpo",
        "algorithm": {"scale": "none", "aggregate": "constant"},
    },
    "grpo, 8 steps a batch": {"method": "grpo", "algorithm": EIGHT},
    "gspo, 8 steps a batch": {
        "method": "grpo",
        "algorithm": {"ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4} | EIGHT,
    },
    "rloo": {"method": "rloo"},
    "reinforce++, baseline": {"method": "reinforce", "algorithm": {"baseline": True}},
    "remax": {"method": "remax", "rollout": {"samples": 1}},
    "online dpo": {"method": "online_dpo", "rollout": {"samples": 2}},
    "rejection": {"method": "rejection"},
    "conditional sft": {"method": "csft"},
    "dpo": {"method": "dpo"},
    "dpo, ipo": {"method": "dpo", "algorithm": {"loss": "ipo"}},
    "dpo, length-normalised": {"method": "dpo", "algorithm": {"length_normalize": True}},
    "simpo": {"method": "simpo"},
    "orpo": {"method": "orpo"},
    "cpo": {"method": "cpo"},
    "kto": {"method": "kto"},
    "bco": {"method": "bco"},
}
"""Name -> what Accord runs."""
