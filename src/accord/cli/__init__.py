"""The command line: parse, validate, and only then import the rest. `accord --help` imports neither torch nor pydantic."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "accord.cli.quickstart",
        "the whole road on a small model made on the spot: about 3 minutes, offline",
    ),
    "sft": ("accord.cli.train", "supervised fine-tuning on text, prompt and completion, or messages"),
    "classify": ("accord.cli.train", "a classifier of texts or of words; with prefixes in every layer, p-tuning v2"),
    "reward": ("accord.cli.train", "a reward model from pairs of answers"),
    "dpo": (
        "accord.cli.train",
        "direct preference optimisation from pairs: DPO, IPO, hinge, EXO, NCA, SPPO, AOT, APO, ...",
    ),
    "orpo": ("accord.cli.train", "odds ratio preference optimisation: imitate and prefer at once, no reference"),
    "simpo": (
        "accord.cli.train",
        "preferences by mean log-probability and a margin, no reference; AlphaPO as an option",
    ),
    "cpo": ("accord.cli.train", "contrastive preference optimisation: no reference, and a likelihood term"),
    "kto": ("accord.cli.train", "Kahneman-Tversky optimisation: learn from thumbs up and down"),
    "bco": ("accord.cli.train", "binary classifier optimisation: learn from thumbs up and down"),
    "csft": ("accord.cli.train", "conditional fine-tuning: good and bad answers, each under its label"),
    "ppo": ("accord.cli.train", "reinforcement learning from a reward model or function"),
    "rloo": ("accord.cli.train", "REINFORCE leave-one-out: groups of responses, no critic"),
    "grpo": ("accord.cli.train", "group relative policy optimisation, with DAPO, Dr. GRPO, GSPO and CISPO as options"),
    "reinforce": ("accord.cli.train", "REINFORCE++: PPO's loss without a critic"),
    "remax": ("accord.cli.train", "REINFORCE against the greedy response: no critic"),
    "rejection": ("accord.cli.train", "best-of-n fine-tuning: sample, keep the best, learn them"),
    "online_dpo": ("accord.cli.train", "DPO on one's own answers, chosen by a reward"),
    "distill": ("accord.cli.train", "on-policy distillation from a teacher"),
    "generate": ("accord.cli.generate", "sample from a model or adapter; the best of several by any rewards"),
    "chat": ("accord.cli.chat", "talk to a model in the terminal"),
    "serve-reward": ("accord.cli.serve_reward", "rewards over HTTP, for policies of any tokenizer"),
    "merge": ("accord.cli.merge", "fold an adapter into its base"),
    "export": ("accord.cli.export", "check a saved model, write its card, push it to the hub"),
    "data": ("accord.cli.data", "check a file of feedback before you train on it; make one of a Stack Exchange dump"),
    "forecast": ("accord.cli.forecast", "what a recipe needs of a device, and whether it fits, before it runs"),
    "report": ("accord.cli.report", "make a run's report.html again"),
}
"""Command -> the module that runs it, and one line of help."""

GROUPS = {
    "Start here": ("quickstart",),
    "Learn from examples": ("sft", "classify", "reward", "dpo", "orpo", "simpo", "cpo", "kto", "bco", "csft"),
    "Learn from rollouts": ("ppo", "rloo", "grpo", "reinforce", "remax", "rejection", "online_dpo", "distill"),
    "Use": ("generate", "chat", "serve-reward", "merge", "export"),
    "Look": ("data", "forecast", "report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed on the way, 2 asked for something that cannot be."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"accord {version('accord')}")
        return 0
    words[0] = words[0] if words[0] in COMMANDS else words[0].replace("-", "_")  # `online-dpo`, as in options
    if words[0] not in COMMANDS:
        return _unknown(words[0])
    _choose_threads()
    from accord.errors import AccordError, ConfigError

    try:
        result: int = importlib.import_module(COMMANDS[words[0]][0]).run(words[0], words[1:])
        return result
    except AccordError as error:
        print(f"accord {words[0]}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"accord {words[0]}: stopped", file=sys.stderr)
        return 130


def overview() -> str:
    """What `accord --help` prints."""
    lines = [
        "accord: teach language models from human feedback",
        "",
        "usage: accord COMMAND [RECIPE.yaml] [--section.key VALUE ...]",
    ]
    for title, names in GROUPS.items():
        lines += ["", title] + [f"  {name:<14}{COMMANDS[name][1]}" for name in names]
    lines += ["", "`accord COMMAND --help` lists every option with its default.", "First time: accord quickstart"]
    return "\n".join(lines)


def _unknown(word: str) -> int:
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"commands: {', '.join(COMMANDS)}"
    print(f"accord: no command {word!r}: {hint}", file=sys.stderr)
    return 2


def _choose_threads() -> None:
    """Before torch is imported: OpenMP threads that spin for long while waiting make a busy machine 10 to 40 times slower, and
    those that sleep at once are 1.7 times slower than they could be on small models. So they spin briefly, then sleep."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
