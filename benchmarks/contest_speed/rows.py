"""The rows of the table: which sides meet, what counts, and what must be reached."""

from __future__ import annotations

from dataclasses import dataclass, field
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
class Row:
    """One line of the table. The first side is Accord's."""

    name: str
    title: str
    measure: Measure
    sides: tuple[Side, ...]
    targets: dict[str, float] = field(default_factory=dict)
    """By the other side's label: how many times as fast; for memory how much of its peak; for a share that share itself."""


def _ours(what: str, label: str = "accord", **job: Any) -> Side:
    return Side(label, "ours", {"what": what, **job})


def _trl(kind: str, label: str = "trl", **job: Any) -> Side:
    return Side(label, "with_trl", {"kind": kind, **job}, "trl-ppo" if kind == "ppo" else "trl")


_SFT = _ours("examples", kind="sft", file="texts.jsonl")
_WIDE: dict[str, Any] = {"file": "full.jsonl", "wide": True}

ROWS: tuple[Row, ...] = (
    Row("sft", "SFT, real tokens/s", "tokens", (_SFT, _trl("sft", file="texts.jsonl")), {"trl": 5}),
    Row(
        "sft-packed",
        "SFT, real tokens/s, trl packs (bfd)",
        "tokens",
        (_SFT, _trl("sft", "trl, bfd", file="texts.jsonl", packing=True)),
        {"trl, bfd": 3},
    ),
    Row(
        "reward",
        "reward model, pairs/s",
        "pairs",
        (_ours("examples", kind="reward", file="pairs.jsonl"), _trl("reward")),
        {"trl": 3},
    ),
    Row("dpo", "DPO, pairs/s", "pairs", (_ours("examples", kind="dpo", file="pairs.jsonl"), _trl("dpo")), {"trl": 3}),
    Row("grpo", "GRPO, s an iteration", "seconds", (_ours("rollouts", kind="grpo"), _trl("grpo")), {"trl": 3}),
    Row("rloo", "RLOO, s an iteration", "seconds", (_ours("rollouts", kind="rloo"), _trl("rloo")), {"trl": 3}),
    Row(
        "ppo",
        "PPO, s an iteration, critic with an adapter of its own",
        "seconds",
        (_ours("rollouts", kind="ppo", critic="adapter"), _trl("ppo")),
        {"trl": 2},
    ),
    Row(
        "ppo-trunk",
        "PPO, s an iteration, critic on the policy's trunk",
        "seconds",
        (_ours("rollouts", kind="ppo", critic="policy_trunk"), _trl("ppo")),
        {"trl": 3},
    ),
    Row(
        "rollouts",
        "rollouts, tokens/s, long-tailed lengths",
        "tokens",
        (
            _ours("generation", fixed=False),
            Side("generate", "limits", {"what": "generate", "contiguous": True}),
            Side("generate, as it is", "limits", {"what": "generate"}),
            Side("vllm", "with_vllm", {}, "vllm"),
        ),
        {"generate": 3, "vllm": 1},
    ),
    Row(
        "training-limit",
        "training, share of the matrix products' limit",
        "share",
        (_SFT, Side("limit", "limits", {"what": "training", "file": "texts.jsonl"})),
        {"limit": 0.6},
    ),
    Row(
        "rollouts-limit",
        "rollouts, share of the matrix products' limit",
        "share",
        (_ours("generation", fixed=True), Side("limit", "limits", {"what": "decoding"})),
        {"limit": 0.5},
    ),
    Row(
        "memory",
        "peak memory of an update, large vocabulary, GiB",
        "memory",
        (_ours("examples", kind="sft", **_WIDE), _trl("sft", **_WIDE)),
        {"trl": 0.5},
    ),
    Row(
        "memory-plain",
        "peak memory of an update, large vocabulary, GiB",
        "memory",
        (_ours("examples", kind="sft", **_WIDE), _ours("plain", "whole logits", kind="sft", **_WIDE)),
        {"whole logits": 0.25},
    ),
    Row("growth", "cost as work grows, s a token against x1", "growth", (_ours("growth"),)),
)
