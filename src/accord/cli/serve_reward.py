"""`accord serve-reward`: rewards over HTTP."""

from __future__ import annotations

import argparse
import os

import yaml

from accord.config import PlacementConfig, ServedRewards, build
from accord.errors import ConfigError


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    options = _parser().parse_args(words)
    served = build(ServedRewards, {"reward": [term for text in options.reward for term in _terms(text)]})
    for name, value in (
        ("--max-batch", options.max_batch),
        ("--max-mb", options.max_mb),
        ("--log-every", options.log_every),
    ):
        if value < 1:
            raise ConfigError(f"{name} must be 1 or more (given: {value})")
    key = os.environ.get(options.key, "").strip() if options.key else None
    if options.key and not key:
        raise ConfigError(f"the environment variable {options.key} (--key) is not set or empty")

    from accord.model.device import choose_device
    from accord.recipes.rewards import mixed_of_texts
    from accord.rewards.serve import RewardServer, ServeLimits, is_loopback

    rewards = mixed_of_texts(served.reward, choose_device(PlacementConfig(device=options.device)))
    limits = ServeLimits(batch=options.max_batch, megabytes=options.max_mb, log_every=options.log_every)
    server = RewardServer(rewards, options.host, options.port, limits, key, say=lambda line: print(line, flush=True))
    if key is None and not is_loopback(options.host):
        server.say("note: anybody who reaches this host can use it; --key NAME asks for a key")
    server.say(f"ready: {', '.join(rewards.labels)} at {server.address}; use it: --reward {server.address}")
    server.serve_until_stopped()
    server.say(f"stopped after {server.requests} requests, {server.responses} responses scored")
    return 0


def _terms(text: str) -> list[object]:
    """One `--reward`: as a recipe's `--reward` takes it."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return value if isinstance(value, list) else [value]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accord serve-reward",
        description="Serve rewards over HTTP, to policies of any tokenizer. Ctrl-C or SIGTERM ends it.",
    )
    parser.add_argument(
        "--reward",
        action="append",
        required=True,
        help="a reward model, FILE.py:NAME, or a term as in a recipe; several are added up with their weights",
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--key", help="name of an environment variable with a key that requests must carry")
    parser.add_argument("--device", default="auto", help="where models run (default: auto)")
    parser.add_argument("--max-batch", type=int, default=256, help="responses in one request (default: 256)")
    parser.add_argument("--max-mb", type=int, default=64, help="largest request, MiB (default: 64)")
    parser.add_argument("--log-every", type=int, default=100, help="print a line after so many requests (default: 100)")
    return parser
