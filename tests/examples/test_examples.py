"""What the examples and the docs promise: programs run, recipes parse, commands, links, options and test files exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.cli import COMMANDS
from accord.config import METHODS, RECIPES, PPORecipe, RolloutConfig, build, dump, load, parse_overrides
from accord.rewards import FunctionReward
from accord.rewards.function import load_function
from accord.types import Rollout

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
PAGES = sorted(
    [
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
    ]
)
MINIMAL = {"model": {"path": "MODEL"}, "data": {"path": "rows.jsonl"}, "output": "runs/x"}

NEEDED = {"distill": {"teacher": "TEACHER"}}
"""What a recipe needs besides."""

PROMISED = {
    "01_raw_loop": ("start/model.safetensors", "model/model.safetensors", "model/tokenizer.json"),
    "02_session": (
        "base/model/model.safetensors",
        "model/adapter_model.safetensors",
        "model/critic/adapter_model.safetensors",
        "model/tokenizer.json",
    ),
    "03_recipe": ("sft/config.yaml", "sft/metrics.jsonl", "sft/model/model.safetensors", "sft/report.html"),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", PROMISED)
def test_an_example_runs_and_leaves_what_it_promises(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{example}.py"), str(tmp_path / "out")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out") in done.stdout, "it says where its results are"
    assert [file for file in PROMISED[example] if not (tmp_path / "out" / file).is_file()] == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"], "nothing is written elsewhere"


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*PROMISED, "rewards", "stackexchange_dump"}


@pytest.mark.slow
def test_the_stack_exchange_page_runs_from_the_dump_to_the_answers(tmp_path: Path) -> None:
    """Every command of the page, in its order, with a tiny model."""
    pytest.importorskip("markdownify")
    from accord.model.tiny import write_tiny_model

    texts = ["Question: sort files in git\n\nHow do I **sort** files in `git`?\n\nAnswer: This works for me:"] * 5
    model = write_tiny_model(tmp_path / "model", texts, vocab_size=400, hidden=32, heads=2)
    page = ROOT / "examples" / "stackexchange.md"
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines() if line]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for line in lines:
        program, *words = shlex.split(line.replace("MODEL", str(model)).replace("examples/", f"{ROOT}/examples/"))
        start = {"python": [sys.executable], "accord": [sys.executable, "-m", "accord"]}[program]
        words += ["--processes", "1"] if words[:2] == ["data", "stackexchange"] else []
        done = subprocess.run(
            [*start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    runs = tmp_path / "runs" / "stackexchange"
    assert all((runs / stage / "model" / "adapter_model.safetensors").is_file() for stage in ("sft", "reward", "ppo"))
    assert len(lines) == 11 and "at most 0.64 nats" in done.stdout and done.stdout.count("Question:") == 2


def rollout(text: str, **columns: Any) -> Rollout:
    return Rollout((1,), (2,), (0.0,), "stop", "Review:", text, columns)


def test_reward_functions_by_hand() -> None:
    rollouts = [
        rollout("A warm, WARM film.", keyword="film"),
        rollout("Dull and boring but fresh. " * 6),
        rollout("x" * 240),
    ]
    expected = {
        "brevity": [1.0, (240 - 162) / 180, 0.0],
        "positive_words": [1.0, -1.0, 0.0],
        "keyword": [1.0, None, None],
        "judged": [0.2, 1.0, 0.05],
    }
    for function, scores in expected.items():
        source = FunctionReward(load_function(f"{ROOT / 'examples' / 'rewards.py'}:{function}"), function)
        assert source.score(rollouts) == pytest.approx(scores), function
    words = load_function(f"{ROOT / 'examples' / 'rewards.py'}:keyword")
    assert FunctionReward(words, "keyword").score([rollout("x")]) == [None], "no row has the column"


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_recipe_file_parses(path: Path) -> None:
    layer = load(path)
    recipe = build(RECIPES[layer["algorithm"]["type"]], layer)
    assert build(type(recipe), yaml.safe_load(dump(recipe))) == recipe
    assert recipe.warnings() == []
    for term in recipe.reward if isinstance(recipe, PPORecipe) else ():
        if term.function is not None:
            file, _, function = term.function.rpartition(":")
            assert callable(load_function(f"{ROOT / file}:{function}"))


def test_each_recipe_has_a_file_and_a_page() -> None:
    assert {load(path)["algorithm"]["type"] for path in CONFIGS} == set(RECIPES)
    assert {path.stem for path in (ROOT / "docs" / "algorithms").glob("*.md")} == set(RECIPES)


# --- docs --------------------------------------------------------------------------------------------------------------


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Words behind `accord` of each command line in a block of code."""
    for block in blocks(page, r"\w*"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("accord ") and line.split()[1].islower():
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_a_page_compiles(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{name(page)}, python block {number}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipes_in_a_page_parse(page: Path) -> None:
    for block in blocks(page, "yaml"):
        layer = yaml.safe_load(block)
        if "algorithm" in layer:
            build(RECIPES[layer["algorithm"]["type"]], layer)
        else:  # one section of a PPO recipe
            build(PPORecipe, MINIMAL, layer)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_a_page_exist_and_so_do_their_options(page: Path) -> None:
    for words in commands(page):
        assert words[0] in COMMANDS, words
        if words[0] not in RECIPES:
            assert words[0] != "data" or words[1] in ("check", "stackexchange"), words
            continue
        options = [word for word in words[1:] if word not in ("--resume", "--dry-run", "--quiet", "--help", "...")]
        if options and not options[0].startswith("--"):
            file = options.pop(0)
            assert not file.startswith("examples/") or (ROOT / file).is_file(), words
        two_rewards = {"reward": ["a.py:f", "a.py:g"]} if words[0] == "ppo" else {}
        build(
            RECIPES[words[0]],
            MINIMAL,
            NEEDED.get(words[0], {}),
            {"model": {"path": "M"}},
            two_rewards,
            parse_overrides(options),
        )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_test_files_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    outside_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{name(page)} links to {target}"
    for file in re.findall(r"\b(?:tests|examples|benchmarks)/[\w/]+\.(?:py|yaml|json)\b", text):
        assert (ROOT / file).exists(), f"{name(page)} names {file}"


@pytest.mark.parametrize("kind", RECIPES)
def test_options_of_a_method_are_told_with_their_defaults(kind: str) -> None:
    page = (ROOT / "docs" / "algorithms" / f"{kind}.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([a-z_]+\.[a-z_.]+)` \| ([^|;]+?)(?:;[^|]*)? \|", page, re.MULTILINE))
    recipe = build(RECIPES[kind], MINIMAL, NEEDED.get(kind, {})).model_dump(mode="json")
    for key, default in told.items():
        actual: Any = recipe
        for part in key.split("."):
            actual = actual[part]
        stated = parse_overrides(["--value", default.strip("`")])["value"]
        assert stated == actual, f"docs/algorithms/{kind}.md says {key} is {default}; it is {actual}"
    missing = {f"algorithm.{key}" for key in leaves(recipe["algorithm"])} - {"algorithm.type"} - told.keys()
    assert missing == set()


def leaves(section: dict[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from (f"{key}.{below}" for below in leaves(value))
        else:
            yield key


def test_the_page_on_adapters_states_every_option_with_its_default():
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    for method, section in METHODS.items():
        part = page.split(f"(`{method}`)\n", 1)[1].split("\n## ", 1)[0]
        stated = dict(re.findall(r"^\| `adapter\.(\w+)` \| `?([^|`]+?)`? \|", part, re.MULTILINE))
        actual = {name: field.default for name, field in section.model_fields.items() if name != "method"}
        assert {name: yaml.safe_load(text) for name, text in stated.items()} == actual, method
        rate = f"| `{method}` | {section.learning_rate_factor:g} |"
        assert rate in page, f"the page does not say {rate}"


def test_the_page_on_rollouts_states_every_option_with_its_default():
    page = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `rollout\.(\w+)` \| ([^|]+?) \|", page, re.MULTILINE))
    assert {name: yaml.safe_load(text) for name, text in stated.items()} == RolloutConfig().model_dump(mode="json")
