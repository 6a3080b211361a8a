"""The rows of the table: which sides meet, what counts, and what must be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Measure = Literal["tokens", "pairs", "seconds", "memory", "share", "growth"]


@dataclass(frozen=True)
class Side:
    """One process of a row."""

    label: str
    module: str
    """Of `contest_speed`."""
    job: dict[str, Any]
    peer: str | None = None
    """What it needs besides the benchmark's own environment: `trl`, `trl-ppo` or `vllm`."""


@dataclass(frozen=True)
class Target:
    """What a side must reach against another: how many times as fast; for memory how much of its peak; for a share that share."""

    against: str
    reach: float
    side: str = "accord"


@dataclass(frozen=True)
class Row:
    """Sides that meet; a line of the table for each target."""

    name: str
    title: str
    measure: Measure
    sides: tuple[Side, ...]
    targets: tuple[Target, ...] = ()


def _ours(what: str, label: str = "accord", **job: Any) -> Side:
    return Side(label, "ours", {"what": what, **job})


def _trl(kind: str, label: str = "trl", **job: Any) -> Side:
    return Side(label, "with_trl", {"kind": kind, **job}, "trl-ppo" if kind == "ppo" else "trl")


_SFT = _ours("examples", kind="sft", file="texts.jsonl")
_OWN_CRITIC, _TRUNK = "accord, critic with an adapter of its own", "accord, critic on the policy's trunk"
_WIDE: dict[str, Any] = {"file": "full.jsonl", "wide": True}

# Two sides of trl do not fit into this memory beside each other, so those have rows of their own.
ROWS: tuple[Row, ...] = (
    Row(
        "sft",
        "SFT, real tokens/s",
        "tokens",
        (_SFT, _trl("sft", file="texts.jsonl")),
        (Target("trl", 5),),
    ),
    Row(
        "sft-packed",
        "SFT, real tokens/s",
        "tokens",
        (_SFT, _trl("sft", "trl, packing (bfd)", file="texts.jsonl", packing=True)),
        (Target("trl, packing (bfd)", 3),),
    ),
    Row(
        "reward",
        "reward model, pairs/s",
        "pairs",
        (_ours("examples", kind="reward", file="pairs.jsonl"), _trl("reward")),
        (Target("trl", 3),),
    ),
    Row(
        "dpo",
        "DPO, pairs/s",
        "pairs",
        (_ours("examples", kind="dpo", file="pairs.jsonl"), _trl("dpo")),
        (Target("trl", 3),),
    ),
    Row("grpo", "GRPO, s an iteration", "seconds", (_ours("rollouts", kind="grpo"), _trl("grpo")), (Target("trl", 3),)),
    Row("rloo", "RLOO, s an iteration", "seconds", (_ours("rollouts", kind="rloo"), _trl("rloo")), (Target("trl", 3),)),
    Row(
        "ppo",
        "PPO, s an iteration",
        "seconds",
        (
            _ours("rollouts", _OWN_CRITIC, kind="ppo", critic="adapter"),
            _ours("rollouts", _TRUNK, kind="ppo", critic="policy_trunk"),
            _trl("ppo"),
        ),
        (Target("trl", 2, _OWN_CRITIC), Target("trl", 3, _TRUNK)),
    ),
    Row(
        "rollouts",
        "rollouts, tokens/s, long-tailed lengths",
        "tokens",
        (
            _ours("generation", fixed=False),
            Side("generate", "limits", {"what": "generate"}),
            Side("vllm", "with_vllm", {}, "vllm"),
        ),
        (Target("generate", 3), Target("vllm", 1)),
    ),
    Row(
        "training-limit",
        "training, share of the matrix products' limit",
        "share",
        (_SFT, Side("limit", "limits", {"what": "training", "file": "texts.jsonl"})),
        (Target("limit", 0.6),),
    ),
    Row(
        "rollouts-limit",
        "rollouts, share of the matrix products' limit",
        "share",
        (_ours("generation", fixed=True), Side("limit", "limits", {"what": "decoding"})),
        (Target("limit", 0.5),),
    ),
    Row(
        "memory",
        "peak memory of an update, large vocabulary, GiB",
        "memory",
        (_ours("examples", kind="sft", **_WIDE), _trl("sft", **_WIDE)),
        (Target("trl", 0.5),),
    ),
    Row(
        "memory-plain",
        "peak memory of an update, large vocabulary, GiB",
        "memory",
        (_ours("examples", kind="sft", **_WIDE), _ours("plain", "whole logits", kind="sft", **_WIDE)),
        (Target("whole logits", 0.25),),
    ),
    Row("growth", "cost as work grows, s a token against x1", "growth", (_ours("growth"),)),
)
