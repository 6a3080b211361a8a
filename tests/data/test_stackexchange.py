"""The recipe: scores, pairs, template, Markdown."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import pytest
from transformers import PreTrainedTokenizerFast

from accord.data import Encoder
from accord.data.stackexchange import (
    EMPTY,
    EQUAL,
    NESTED,
    Answer,
    Question,
    StackExchangeOptions,
    in_test,
    make_rows,
    markdown_converter,
    score,
    template,
    to_markdown,
)
from accord.errors import ConfigError, DataError


def ask(*scores: float, texts: list[str] | None = None, id: int = 1) -> Question:
    """A question in Markdown with answers of these scores."""
    texts = texts or [f"answer {k}" for k in range(len(scores))]
    return Question(id, "Title", "Body", tuple(map(Answer, texts, scores)), html=False)


def rows(question: Question, **options: object) -> list[dict[str, object]]:
    return [json.loads(line) for line in make_rows(question, StackExchangeOptions(**options)).lines]


@pytest.mark.parametrize(
    ("votes", "accepted", "expected"),
    [
        (-7, False, -1),
        (-1, True, -1),  # nothing is added to a negative one
        (0, False, 0),
        (0, True, 1),
        (1, False, 1),
        (2, False, 2),  # log2(3) = 1.58
        (4, False, 2),  # log2(5) = 2.32
        (5, False, 3),  # log2(6) = 2.58
        (10, True, 4),  # log2(11) = 3.46
        (11, True, 5),  # log2(12) = 3.58
        (1023, False, 10),
        (27000, True, 16),
    ],
)
def test_score_by_hand(votes, accepted, expected):
    assert score(votes, accepted) == expected


def test_score_is_the_nearest_power_of_two():
    """Without logarithms: 2^(s - 1/2) <= 1 + votes < 2^(s + 1/2), squared so that the numbers are whole."""
    for votes in range(5000):
        s = score(votes, False)
        assert Fraction(2) ** (2 * s - 1) < (1 + votes) ** 2 < Fraction(2) ** (2 * s + 1)


def test_pairs_have_the_better_answer_as_chosen_and_the_difference_as_margin():
    found = rows(ask(2, 5, 2, -1))
    expected = {(1, 0): 3, (1, 2): 3, (1, 3): 6, (0, 3): 3, (2, 3): 3}
    assert {(r["chosen"], r["rejected"]): r["margin"] for r in found} == {
        (f" answer {i}", f" answer {j}"): margin for (i, j), margin in expected.items()
    }
    assert {r["prompt"] for r in found} == {"Question: Title\n\nBody\n\nAnswer:"} and {
        r["question_id"] for r in found
    } == {1}
    assert set(rows(ask(1, 0), margin=False)[0]) == {"prompt", "question_id", "chosen", "rejected"}


def test_equal_scores_are_no_pair():
    outcome = make_rows(ask(3, 3, 3), StackExchangeOptions())
    assert outcome.fault == EQUAL and outcome.lines == [] and outcome.left_out.total() == 3


def test_equal_texts_are_no_pair():
    """`accord reward` would refuse such a row."""
    assert make_rows(ask(3, 1, texts=["same", "same"]), StackExchangeOptions()).fault == EQUAL
    found = rows(ask(3, 1, 0, texts=["same", "same", "other"]))
    assert [(r["chosen"], r["rejected"]) for r in found] == [(" same", " other")] * 2


def test_at_most_so_many_pairs_drawn_by_seed_and_question():
    many = ask(*range(8))
    outcome = make_rows(many, StackExchangeOptions())
    assert len(outcome.lines) == 10 and outcome.pairs == 28
    assert make_rows(many, StackExchangeOptions()).lines == outcome.lines
    assert make_rows(many, StackExchangeOptions(seed=1)).lines != outcome.lines
    places = {tuple(r["chosen"] + r["rejected"] for r in rows(ask(*range(8), id=id))) for id in range(5)}
    assert len(places) == 5, "each question has a draw of its own"
    assert len(set(outcome.lines)) == 10 and set(outcome.lines) < set(
        make_rows(many, StackExchangeOptions(max_pairs=99)).lines
    )
    used = {text for line in outcome.lines for text in (json.loads(line)["chosen"], json.loads(line)["rejected"])}
    assert outcome.used == len(used) and outcome.used + outcome.left_out.total() == 8


def test_every_pair_is_as_likely():
    """3 pairs of 6, 2000 questions: each pair is expected 1000 times, give or take 22 (one standard deviation)."""
    counts: dict[str, int] = {}
    for id in range(2000):
        for r in rows(ask(0, 1, 2, 3, id=id), max_pairs=3):
            key = f"{r['chosen']}{r['rejected']}"
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6 and all(abs(count - 1000) < 112 for count in counts.values())


def test_the_best_answer_for_imitation():
    by_votes = (Answer("a", 3, 4), Answer("b", 3, 6), Answer("c", 3, 6), Answer("d", 1, 1))
    question = Question(4, "", "Body", by_votes, html=False)
    outcome = make_rows(question, StackExchangeOptions(format="sft"))
    assert [json.loads(line) for line in outcome.lines] == [
        {"prompt": "Question: Body\n\nAnswer:", "question_id": 4, "completion": " b"}
    ]
    assert outcome.used == 1 and outcome.left_out.total() == 3


def test_prompts_alone():
    outcome = make_rows(ask(1, 1), StackExchangeOptions(format="prompts"))
    assert json.loads(outcome.lines[0]).keys() == {"prompt", "question_id"} and outcome.left_out.total() == 2


def test_empty_texts_are_left_out():
    outcome = make_rows(ask(3, 1, 0, texts=["good", " \n", "bad"]), StackExchangeOptions())
    assert len(outcome.lines) == 1 and outcome.left_out == {EMPTY: 1, "in none of the pairs drawn": 0}
    assert make_rows(ask(3, 1, texts=["good", ""]), StackExchangeOptions()).fault == "it has fewer than 2 answers"
    question = Question(1, "Title", "  ", ask(2, 1).answers, html=False)
    assert make_rows(question, StackExchangeOptions()).fault == EMPTY


def test_html_as_markdown():
    pytest.importorskip("markdownify")
    html = (
        "<p>Use <code>a_b</code> and <strong>2 * 3</strong>, see <a href='https://x.org'>here</a> &amp; there.</p>\n"
        "<pre class='lang-py s-code-block'><code>def f(x):\n    return x &lt; 3  # *no*\n</code></pre>\n"
        "<h2>More</h2>\n<blockquote><p>said</p></blockquote>\n<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n<ol><li>first</li></ol>"
    )
    assert to_markdown(html) == (
        "Use `a_b` and **2 * 3**, see [here](https://x.org) & there.\n\n"
        "```py\ndef f(x):\n    return x < 3  # *no*\n```\n\n"
        "## More\n\n> said\n\n- one\n- two\n\n1. first"
    )
    assert to_markdown("<p> </p>\n<pre><code></code></pre>") == ""
    assert to_markdown("https://example.org/a.html") == "https://example.org/a.html"  # and no warning about file names


def test_html_nested_without_end_is_left_out_and_does_no_harm():
    pytest.importorskip("markdownify")
    deep = "<b>" * 5000 + "x"
    assert to_markdown(deep) is None
    question = Question(1, "", "<p>q</p>", (Answer("<p>a</p>", 1), Answer(deep, 2), Answer("<p>b</p>", 0)))
    assert make_rows(question, StackExchangeOptions()).left_out[NESTED] == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    markdown_converter.cache_clear()
    monkeypatch.setitem(sys.modules, "markdownify", None)
    with pytest.raises(DataError, match=r"pip install .accord\[stackexchange\]"):
        to_markdown("<p>x</p>")
    markdown_converter.cache_clear()


def test_the_prompt_is_a_beginning_in_tokens_too(plain_tokenizer: PreTrainedTokenizerFast):
    """What is sampled after is what training saw: a prompt that ended in a space would not be (the trap)."""
    encoder = Encoder(plain_tokenizer)
    prompt, completion = template("hello there"), " the cat sat on the mat"
    sequence = encoder.encode_example(prompt, completion)
    ids = encoder.encode_prompt(prompt)
    assert sequence.input_ids[: len(ids)] == ids and sequence.target_mask.index(True) == len(ids)
    spaced = encoder.encode_prompt(prompt + " ")
    assert sequence.input_ids[: len(spaced)] != spaced
    assert prompt + completion == "Question: hello there\n\nAnswer: the cat sat on the mat"


def test_the_split_depends_on_the_id_alone_and_has_its_share():
    held = [in_test(id, 0.1) for id in range(20_000)]
    assert abs(sum(held) - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    assert all(in_test(id, 0.2) for id in range(1000) if in_test(id, 0.1)), "a larger share holds the smaller one"
    assert in_test("17", 0.5) == in_test(17, 0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_pairs": 0}, "max_pairs"),
        ({"min_answers": 1}, "pairs need min_answers of 2"),
        ({"format": "sft", "min_answers": 0}, "sft needs min_answers of 1"),
        ({"limit": 0}, "limit"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"processes": 0}, "processes"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        StackExchangeOptions(**options)
