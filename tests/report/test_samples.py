"""Which samples are shown, and beside which."""

from __future__ import annotations

from accord.report.read import Sample
from accord.report.samples import extremes, pair_up, shorten


def sample(prompt: str, score: float | None = 0.0, iteration: int = 1, response: str = "r") -> Sample:
    return Sample(iteration, prompt, response, score, 0.1, 3, "stop")


def test_same_prompt_side_by_side_first() -> None:
    first = [sample("a"), sample("b"), sample("c")]
    last = [sample("x", iteration=9), sample("c", iteration=9), sample("a", iteration=9)]
    pairs = pair_up(first, last)
    assert [(p.before.prompt, p.after.prompt) for p in pairs if p.before and p.after] == [
        ("c", "c"), ("a", "a"), ("b", "x"),
    ]  # fmt: skip
    assert [pair.same_prompt for pair in pairs] == [True, True, False]
    assert all(p.before.iteration == 1 and p.after.iteration == 9 for p in pairs if p.before and p.after)


def test_a_group_of_answers_to_one_prompt_fills_one_pair() -> None:
    first = [sample("a"), sample("a"), sample("b")]
    last = [sample("a", iteration=9), sample("a", iteration=9), sample("b", iteration=9)]
    assert [pair.after.prompt for pair in pair_up(first, last) if pair.after] == ["a", "b"]


def test_one_side_only_is_shown_alone() -> None:
    (pair,) = pair_up([], [sample("a")])
    assert pair.before is None and pair.after is not None and not pair.same_prompt
    assert pair_up([], []) == []


def test_limit() -> None:
    many = [sample(str(i)) for i in range(50)]
    assert len(pair_up(many, many, limit=6)) == 6


def test_extremes_are_ranked_and_never_shared() -> None:
    samples = [sample("p", score) for score in (0.5, None, -1.0, 2.0, 1.0, 0.0)]
    highest, lowest = extremes(samples, limit=3)
    assert [s.score for s in highest] == [2.0, 1.0]
    assert [s.score for s in lowest] == [-1.0, 0.0]
    assert extremes([sample("p", 1.0)]) == ([], [])


def test_long_text_keeps_both_ends() -> None:
    text = "a" * 500 + "b" * 500
    short = shorten(text, 100)
    assert short.startswith("a" * 50 + "\n[… 900 characters …]\n") and short.endswith("b" * 50)
    assert shorten("short") == "short"
