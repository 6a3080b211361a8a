"""Python functions as rewards: how they are called, and what is said when they fail."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path

import pytest

from accord.errors import ConfigError, RewardError
from accord.rewards import FunctionReward
from accord.rewards.function import load_function


def length(prompts, responses):
    return [float(len(response)) for response in responses]


def test_a_function_that_names_no_columns_gets_none(rollouts) -> None:
    assert FunctionReward(length, "length").score(rollouts) == [1.0, 4.0, 1.0]


def test_a_function_gets_the_columns_that_it_names(rollouts) -> None:
    def correct(prompts, responses, answer):
        assert prompts == ["2+2=", "3+3=", "1+1="] and answer == ["4", "6", None]
        return [None if a is None else float(r == a) for r, a in zip(responses, answer, strict=True)]

    assert FunctionReward(correct, "correct").score(rollouts) == [1.0, 0.0, None]


def test_a_function_of_any_columns_gets_all(rollouts) -> None:
    seen = {}

    def anything(prompts, responses, **columns):
        seen.update(columns)
        return [0.0] * 3

    FunctionReward(anything, "anything").score(rollouts)
    assert seen == {"answer": ["4", "6", None], "level": [1, None, 3]}


def test_a_function_that_names_response_ids_gets_them_also_beside_any_columns(rollouts) -> None:
    def tokens(prompts, responses, response_ids, **columns):
        assert set(columns) == {"answer", "level"}
        return [[float(token) for token in ids] for ids in response_ids]

    reward = FunctionReward(tokens, "tokens")
    assert reward.reads_tokens and not FunctionReward(length, "length").reads_tokens
    assert reward.score(rollouts) == [tuple(map(float, rollout.response_ids)) for rollout in rollouts]


def test_a_column_without_data_falls_to_its_default(rollouts) -> None:
    def optional(prompts, responses, other=2.0):
        return [other] * len(responses)

    assert FunctionReward(optional, "optional").score(rollouts) == [2.0] * 3

    def required(prompts, responses, other):
        return []

    with pytest.raises(RewardError, match="missing 1 required positional argument: 'other'"):
        FunctionReward(required, "required").score(rollouts)


def test_an_async_function_is_awaited_also_inside_a_running_loop(rollouts) -> None:
    async def slow(prompts, responses):
        values = await asyncio.gather(*(asyncio.sleep(0.001, float(len(r))) for r in responses))
        return list(values)

    reward = FunctionReward(slow, "slow")
    assert reward.score(rollouts) == [1.0, 4.0, 1.0]

    async def notebook():
        return reward.score(rollouts)

    assert asyncio.run(notebook()) == [1.0, 4.0, 1.0]

    async def broken(prompts, responses):
        await asyncio.sleep(0)
        raise KeyError("lost")

    async def notebook_of_broken():
        return FunctionReward(broken, "broken").score(rollouts)

    for call in (lambda: FunctionReward(broken, "broken").score(rollouts), lambda: asyncio.run(notebook_of_broken())):
        with pytest.raises(RewardError, match=r"reward broken raised KeyError: 'lost'\n  at .*test_function.py:\d+"):
            call()


def test_an_async_function_has_a_deadline_also_inside_a_running_loop(rollouts) -> None:
    ended = []

    async def waits(prompts, responses):
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("cancelled")

    reward = FunctionReward(waits, "waits", timeout=0.05)
    said = r"reward waits did not return within 0.05 s .* 3 responses, the first: sample 0 \(prompt '2\+2='"
    with pytest.raises(RewardError, match=said):
        reward.score(rollouts)

    async def notebook():
        return reward.score(rollouts)

    with pytest.raises(RewardError, match=said):
        asyncio.run(notebook())
    assert ended == ["cancelled"] * 2


def test_a_deadline_of_the_function_s_own_is_an_error_of_its_own(rollouts) -> None:
    async def gives_up(prompts, responses):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(30)

    with pytest.raises(RewardError, match=r"reward gives_up raised TimeoutError.*\n  at .*test_function.py:\d+"):
        FunctionReward(gives_up, "gives_up", timeout=20).score(rollouts)


def line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.strip() == text)


def test_a_function_that_raises_is_named_with_its_line_and_a_sample(rollouts) -> None:
    def broken(prompts, responses):
        raise ZeroDivisionError("oops")

    with pytest.raises(RewardError) as caught:
        FunctionReward(broken, "broken").score(rollouts)
    line = line_of('raise ZeroDivisionError("oops")')
    assert str(caught.value) == (
        f"reward broken raised ZeroDivisionError: oops\n  at {__file__}:{line}\n"
        "  on 3 responses, the first: sample 0 (prompt '2+2=', response '4')"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_line_is_the_user_s_and_not_a_library_s(rollouts) -> None:
    def reads(prompts, responses):
        return [json.loads(response + "}")["score"] for response in responses]

    @wraps(reads)
    def wrapped(*args, **kwargs):
        return reads(*args, **kwargs)

    line = line_of('return [json.loads(response + "}")["score"] for response in responses]')
    for function in (reads, wrapped):
        with pytest.raises(RewardError, match=f"test_function.py:{line}\n"):
            FunctionReward(function, "reads").score(rollouts)


def test_an_exit_is_an_error_and_no_good_end(rollouts, tmp_path: Path) -> None:
    def leaves(prompts, responses):
        sys.exit(0)

    async def leaves_late(prompts, responses):
        await asyncio.sleep(0)
        sys.exit(0)

    async def cancelled(prompts, responses):
        raise asyncio.CancelledError

    for function, kind in ((leaves, "SystemExit: 0"), (leaves_late, "SystemExit: 0"), (cancelled, "CancelledError: ")):
        with pytest.raises(RewardError, match=rf"reward r raised {kind}\n  at .*test_function.py:\d+"):
            FunctionReward(function, "r").score(rollouts)

    def interrupted(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionReward(interrupted, "r").score(rollouts)
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"leaves.py cannot be imported: SystemExit: 0\n  at .*leaves.py:2"):
        load_function(f"{tmp_path}/leaves.py:f")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], "returned 2 scores for 3 responses"),
        ([1.0, float("nan"), 2.0], "gave nan for sample 1"),
        ([1.0, 2.0, "3"], "gave '3' for sample 2"),
        (0.5, "returned a float"),
        (None, "returned a NoneType"),
    ],
)
def test_what_a_function_returns_is_checked(returned, said: str, rollouts) -> None:
    with pytest.raises(RewardError, match=f"reward r {said}"):
        FunctionReward(lambda prompts, responses: returned, "r").score(rollouts)


def test_a_function_that_cannot_be_called_with_the_keywords_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"reward r takes \(texts\), but it is called with the keywords"):
        FunctionReward(lambda texts: texts, "r")
    FunctionReward(lambda **everything: [], "r")


@pytest.mark.parametrize(
    "function",
    [
        lambda prompts, responses, /: [],
        lambda prompts, /, responses: [],
        lambda prompts, responses, /, **columns: [],
        lambda extra, /, prompts, responses: [],
        partial(lambda prompts, responses, /: []),
    ],
)
def test_a_function_that_takes_arguments_by_place_alone_is_refused_before_the_run(function) -> None:
    with pytest.raises(ConfigError, match=r"\('\w+' by its place alone\), but it is called with the keywords"):
        FunctionReward(function, "r")


def test_a_function_whose_parameters_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"reward r: its parameters cannot be read .*: write a `def` around it"):
        FunctionReward(dict.update, "r")
    FunctionReward(lambda extra=1, /, *rest, prompts, responses: [], "r").check_columns(["extra", "rest"])


def needs(prompts, responses, answer, *, level, response_ids, other=0.0):
    return [float(len(a or "") + (n or 0)) for a, n in zip(answer, level, strict=True)]


def test_a_column_that_a_function_needs_and_the_data_lacks_is_told_before_the_run(rollouts) -> None:
    said = r"reward r cannot be called without 'level', .*; columns beside the prompt: answer, stars\. Rename one"
    with pytest.raises(ConfigError, match=said):
        FunctionReward(needs, "r").check_columns(["stars", "answer"])
    with pytest.raises(ConfigError, match=r"'answer', .*; columns beside the prompt: none"):
        FunctionReward(needs, "r").check_columns([])
    with pytest.raises(ConfigError, match="without 'answer'"):
        FunctionReward(lambda prompts, responses, answer, **more: [], "r").check_columns(["level"])
    FunctionReward(needs, "r").check_columns(["answer", "level"])
    FunctionReward(lambda prompts, responses, **more: [], "r").check_columns([])


def test_a_needed_column_comes_along_also_where_no_response_has_it(rollouts) -> None:
    reward = FunctionReward(needs, "r")
    reward.check_columns(["answer", "level"])
    assert reward.score(rollouts) == [2.0, 1.0, 3.0]
    assert reward.score(rollouts[1:2]) == [1.0] and reward.score(rollouts[2:]) == [3.0]
    assert "level" not in rollouts[1].columns and "answer" not in rollouts[2].columns


def test_what_a_partial_or_a_wrapper_gives_is_not_needed(rollouts) -> None:
    bound = FunctionReward(partial(needs, level=[1, 1, 1]), "bound")
    with pytest.raises(ConfigError, match="reward bound cannot be called without 'answer'"):
        bound.check_columns(["level"])
    bound.check_columns(["answer"])

    @wraps(needs)
    def gives(*args, **kwargs):
        return needs(*args, **{"level": [0, 0, 0]} | kwargs)

    reward = FunctionReward(gives, "gives")
    reward.check_columns(["answer"])
    assert reward.score([replace(r, columns={"answer": "42"}) for r in rollouts]) == [2.0] * 3

    @wraps(needs)
    def wants(prompts, responses, stars):
        return [float(n) for n in stars]

    narrow = FunctionReward(wants, "wants")
    with pytest.raises(ConfigError, match="reward wants cannot be called without 'stars'"):
        narrow.check_columns(["answer", "level"])
    assert narrow.score([replace(r, columns={"answer": "42", "stars": 5}) for r in rollouts]) == [5.0] * 3

    @wraps(length)
    def also(*, stars, **kwargs):
        return [x + n for x, n in zip(length(**kwargs), stars, strict=True)]

    assert FunctionReward(also, "also").score([replace(r, columns={"stars": 5}) for r in rollouts]) == [6.0, 9.0, 6.0]


# --- loading -------------------------------------------------------------------------------------------------------------


def test_a_function_of_a_file_is_loaded(tmp_path: Path, monkeypatch, rollouts) -> None:
    file = tmp_path / "rewards.py"
    file.write_text("def brevity(prompts, responses):\n    return [-float(len(r)) for r in responses]\n")
    assert FunctionReward(load_function(f"{file}:brevity"), "b").score(rollouts) == [-1.0, -4.0, -1.0]
    monkeypatch.chdir(tmp_path)
    assert load_function("rewards.py:brevity")([], ["ab"]) == [-2.0]


def test_a_function_of_a_module_is_loaded() -> None:
    assert load_function("os.path:join") is __import__("os").path.join


def test_what_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"file nowhere.py does not exist \(looked in {tmp_path}\)"):
        load_function("nowhere.py:f")
    Path("some.py").write_text("import json\nlimit = 3\ndef brevity(): ...\ndef accuracy(): ...\ndef _hidden(): ...\n")
    for name in ("brevty", "limit", "nothing"):
        with pytest.raises(ConfigError, match=f"some.py has no function '{name}'; it has: accuracy, brevity$"):
            load_function(f"some.py:{name}")
    Path("empty.py").write_text("")
    with pytest.raises(ConfigError, match="it has: no functions"):
        load_function("empty.py:f")
    Path("broken.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(ConfigError, match=r"broken.py cannot be imported: ZeroDivisionError.*\n  at .*/broken.py:2$"):
        load_function("broken.py:f")
    with pytest.raises(
        ConfigError, match=r"module 'broken' cannot be imported: ZeroDivisionError.*\n  at .*broken.py:2$"
    ):
        load_function("broken:f")
    Path("reads.py").write_text("import json\n\nlimits = json.loads('{')\n")
    with pytest.raises(ConfigError, match=r"\n  at .*/reads.py:3$"):
        load_function("reads.py:f")
    Path("syntax.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"syntax\.py cannot be imported: SyntaxError"):
        load_function("syntax.py:f")
    with pytest.raises(ConfigError, match=r"reward module 'no\.such\.module' cannot be imported"):
        load_function("no.such.module:f")
    with pytest.raises(ConfigError, match=r"json has no function 'lods'; it has: .*loads"):
        load_function("json:lods")


def test_a_function_that_names_response_ids_gets_them_and_may_score_tokens(rollouts) -> None:
    def each(prompts, responses, response_ids):
        return [[float(token) for token in ids] for ids in response_ids]

    assert FunctionReward(each, "r").score(rollouts) == [tuple(map(float, r.response_ids)) for r in rollouts]
