"""What both libraries share in `learning.py`: sizes, coefficients and the search, in one place."""

from __future__ import annotations

LORA = {"r": 16, "alpha": 32}
RATES = {"addition": (1e-4, 3e-4, 1e-3), "sentiment": (3e-4, 1e-3)}
"""Learning rates of the search; the best on the training prompts is taken."""
SEEDS = (0, 1, 2)
SEARCH_SEEDS = {"addition": SEEDS, "sentiment": SEEDS[:1]}
"""Seeds of the search in the contest. Additions are learnt almost to the end at every rate: one seed would choose by chance."""
BATCH = {"addition": 64, "sentiment": 32}
"""Responses (or pairs, or labelled rows) an iteration."""
ITERATIONS = {"addition": 12, "sentiment": 8}
GROUP = 8
"""Responses to each prompt, for methods that compare them."""
PPO = {"epochs": 2, "minibatches": 2, "kl": 0.05, "clip": 0.2, "value_coef": 0.1, "gamma": 1.0, "lam": 0.95}
GRPO = {"kl": 0.02, "clip": 0.2}
RLOO = {"kl": 0.05}
BETA = 0.1
"""Of DPO and KTO."""
PAIRS = {"addition": 384, "sentiment": 128}
"""Pairs of base responses for methods on examples, drawn once and given to all."""
EXAMPLE_EPOCHS = 2
