"""The kinds of reward: short and long forms, what is refused, what is written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from accord.config import GRPORecipe, JudgeConfig, RemoteConfig, RewardTerm, ServedRewards, build, dump
from accord.config.base import sections_in
from accord.config.reward import KINDS
from accord.errors import ConfigError

SHORT = {
    "classifier": ("owner/sentiment", "model"),
    "lexicon": ("vader", "words"),
    "verifier": ("math", "type"),
    "regex": (r"\d+", "pattern"),
    "format": (["think", "answer"], "tags"),
    "length": (100, "target"),
    "repetition": (3, "n"),
    "code": ("test", "tests"),
    "url": ("http://127.0.0.1:8000", "address"),
}
LABELS = {"classifier": "sentiment", "lexicon": "vader", "verifier": "math"}


@pytest.mark.parametrize("kind", SHORT)
def test_the_main_option_may_stand_alone(kind):
    value, option = SHORT[kind]
    short, long = RewardTerm(**{kind: value}), RewardTerm(**{kind: {option: value}})
    assert short == long and short.kind == kind
    assert short.label == LABELS.get(kind, kind)


def test_every_kind_has_its_key():
    assert set(KINDS) == {*SHORT, "model", "models", "function", "judge"} <= set(RewardTerm.model_fields)


def test_an_address_is_a_server():
    for address in ("http://10.0.0.1:8000", "https://rewards.example/v2"):
        term = RewardTerm.model_validate(address)
        assert term.url is not None and term.url.address == address and term.function is None


JUDGE = {"address": "http://127.0.0.1:1", "model": "m"}


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"lexicon": "vader", "regex": "x"}, "exactly one of .* and `judge` .given: lexicon, regex"),
        ({"regex": "("}, "is not a regular expression"),
        ({"format": []}, "format.tags"),
        ({"format": ["<think>"]}, "names without brackets"),
        ({"format": ["a", "a"]}, "different names"),
        ({"length": {}}, "give `target`, or `min` or `max` or both"),
        ({"length": {"target": 3, "max": 4}}, "give `target`, or"),
        ({"length": {"min": 5, "max": 4}}, r"`min` \(5\) is greater than `max` \(4\)"),
        ({"lexicon": {"words": "vader", "once": True}}, "for lists of words"),
        ({"verifier": "chess"}, "verifier.type"),
        ({"code": {"tests": "t", "after": "check({entry point})"}}, "is no name; a brace that is meant as text"),
        ({"code": {"tests": "t", "after": "{"}}, "a brace that is meant as text is written twice"),
        (
            {"code": {"tests": "t", "after": "check({entry:>q})"}},
            r"{entry:>q} has a format behind its name; .* write {entry}",
        ),
        ({"judge": JUDGE | {"prompt": "{response:>q}"}}, r"{response:>q} has a format behind its name"),
        ({"judge": JUDGE | {"prompt": "{response} {gold!r}"}}, r"{gold!r} has a format behind its name"),
        ({"url": "ftp://x"}, "an address looks like http://127.0.0.1:8000, not 'ftp://x'"),
        ({"url": "http://u:p@x"}, "without user and password"),
        ({"url": "http://x:port"}, "an address looks like"),
        ({"judge": JUDGE | {"key": "sk-abc123"}}, "is the name of an environment variable"),
        ({"judge": JUDGE | {"prompt": "Rate!"}}, "has no {response}"),
        ({"judge": JUDGE | {"prompt": '{response} {"score": 1}'}}, "is no name"),
        ({"judge": JUDGE | {"min": 1, "max": 1}}, r"`min` \(1\) must be less than `max` \(1\)"),
        ({"judge": JUDGE | {"regex": r"\d+"}}, "needs a group"),
        ({"judge": JUDGE | {"regex": r"(\d+)", "json_key": "x"}}, "one of `json_key` and `regex`"),
        ({"lexicon": "vader", "timeout": 5}, "`timeout` here is for a function; that of `lexicon`"),
    ],
)
def test_what_cannot_be_meant_is_refused(term, said):
    with pytest.raises(ValidationError, match=said):
        RewardTerm(**term)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown key `reward.0.length.targit`: did you mean `target`\?"):
        build(ServedRewards, {"reward": [{"length": {"targit": 5}}]})


def test_only_what_belongs_to_the_kind_is_written_down():
    terms = [{"lexicon": "vader"}, {"function": "a.py:f"}, {"judge": JUDGE | {"key": "OPENAI_API_KEY"}}]
    served = build(ServedRewards, {"reward": terms})
    written = yaml.safe_load(dump(served))
    assert [set(term) for term in written["reward"]] == [
        {"lexicon", "weight", "name"},
        {"function", "weight", "name", "timeout"},
        {"judge", "weight", "name"},
    ]
    assert build(ServedRewards, written) == served


def test_columns_that_a_source_needs():
    def columns(**term) -> tuple[str, ...]:
        return RewardTerm(**term).columns

    assert columns(verifier="math") == ("answer",)
    assert columns(code={"tests": "t", "before": "prompt", "after": "check({f})"}) == ("t", "f")
    assert columns(code={"tests": "t", "before": "setup"}) == ("t", "setup")
    assert columns(judge=JUDGE | {"prompt": "{gold} {response} {prompt} {min} {gold}"}) == ("gold",)
    assert columns(judge=JUDGE) == () == columns(function="a.py:f") == columns(lexicon="vader")
    assert JudgeConfig(**JUDGE, prompt="{{x}} {response}").columns == ()


def test_a_server_gets_texts_and_no_tokens():
    for term in ({"length": 5}, {"repetition": 3}):
        with pytest.raises(ConfigError, match="counts the policy's tokens, and a server gets texts"):
            build(ServedRewards, {"reward": [term]})
    build(ServedRewards, {"reward": [{"length": {"target": 5, "unit": "words"}}, "runs/reward/model"]})
    with pytest.raises(ConfigError, match="two rewards are called f"):
        build(ServedRewards, {"reward": ["a.py:f", "b.py:f"]})
    with pytest.raises(ConfigError, match="reward"):
        build(ServedRewards, {"reward": []})


LEAST = {"model": {"path": "m"}, "data": {"path": "d"}, "output": "o"}


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"scale": "none"}, "algorithm.scale"),
        ({"reward_clip": 5}, "algorithm.reward_clip"),
        ({"overlong": 5, "reward_scale": 2.0}, "algorithm.overlong, algorithm.reward_scale"),
        ({"missing_eos_penalty": 1}, "algorithm.missing_eos_penalty"),
        ({"kl": {"use": "reward"}}, "algorithm.kl.use: reward"),
    ],
)
def test_normalising_each_reward_leaves_no_sum_to_shape(algorithm, said):
    build(GRPORecipe, LEAST, {"algorithm": {"normalize_each": True}})
    with pytest.raises(ConfigError, match=f"normalises each reward by itself, and {said} would change their sum"):
        build(GRPORecipe, LEAST, {"algorithm": algorithm | {"normalize_each": True}})


def test_the_page_tells_each_option_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([^|]+?) \|", page, re.MULTILINE))
    shared = {
        f"judge.{key}" for key in RemoteConfig.model_fields if key != "address"
    }  # the page refers to `url` for these
    for kind in (*SHORT, "judge"):
        (section,) = sections_in(RewardTerm.model_fields[kind].annotation)
        for key, field in section.model_fields.items():
            if f"{kind}.{key}" in shared | {"judge.prompt"}:
                continue
            stated = told.pop(f"{kind}.{key}")
            assert (stated == "required") == field.is_required(), (kind, key)
            if not field.is_required():
                assert yaml.safe_load(stated) == field.default, (kind, key)
    assert set(told) == {"judge.prompt"}
