"""The losses, as pure functions: tensors and scalars in, `(loss, metrics)` out.

The rules of the house. Keyword arguments only. The denominator is an argument: the count over the whole optimiser step and
all ranks, so that any split into micro-batches gives the same gradient. Metrics are additive in the same way (each is
already divided by a denominator, so that adding them over micro-batches gives the mean of the step) unless their name ends
in `_max`. No config object, no logging, no collective, no `.item()`. What is learnt is masked first and not only when it is
summed: a NaN in a masked advantage or return would come back through the product as a NaN gradient (0 x NaN = NaN).
"""

from accord.losses.bco import bco
from accord.losses.classify import classify
from accord.losses.cpo import cpo
from accord.losses.distill import distill
from accord.losses.dpo import aot_values, dpo, matched
from accord.losses.grpo import grpo, token_weights
from accord.losses.kto import kto
from accord.losses.orpo import orpo
from accord.losses.ppo import kl_penalty, ppo_policy, ppo_value
from accord.losses.reward import bradley_terry, process_reward
from accord.losses.rloo import rloo
from accord.losses.router import router_balance
from accord.losses.sft import sft
from accord.losses.simpo import simpo
from accord.losses.surrogate import approximate_kl, log_ratios_of

__all__ = [
    "aot_values",
    "approximate_kl",
    "bco",
    "bradley_terry",
    "classify",
    "cpo",
    "distill",
    "dpo",
    "grpo",
    "kl_penalty",
    "kto",
    "log_ratios_of",
    "matched",
    "orpo",
    "ppo_policy",
    "ppo_value",
    "process_reward",
    "rloo",
    "router_balance",
    "sft",
    "simpo",
    "token_weights",
]
