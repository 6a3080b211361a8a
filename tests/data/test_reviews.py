"""The film-review grammar: its posterior is the truth, and what it writes is what the posterior reads."""

from __future__ import annotations

import math
import random
import re
import statistics

import pytest

from accord.data import reviews
from accord.data.reviews import (
    ASPECT_FLIP,
    PAIR_GAP,
    VERDICT_FLIP,
    is_held_out,
    log_odds_positive,
    probability_positive,
    well_formed,
    write_corpus,
    write_examples,
    write_pairs,
    write_prompt,
    write_prompts,
    write_review,
)
from accord.data.reviews_lexicon import RULES
from accord.errors import DataError

LITERAL = (
    'Review of "The Tiger and the Valley", a three-hour comedy: The pacing proves hardly worth the wait, and the script '
    "seems truly clever. The humor is typical of this director. All in all, a dreary mess."
)


def odds(probability: float) -> float:
    return probability / (1 - probability)


@pytest.fixture(scope="module")
def written() -> list[reviews.Review]:
    rng = random.Random(0)
    return [write_review(rng) for _ in range(20_000)]


def test_posterior_equals_the_odds_multiplied_by_hand() -> None:
    aspect, verdict = (1 - ASPECT_FLIP) / ASPECT_FLIP, (1 - VERDICT_FLIP) / VERDICT_FLIP
    assert (aspect, round(verdict)) == (4.0, 19)
    assert odds(probability_positive("The acting is superb.")) == pytest.approx(4)
    assert odds(probability_positive("The acting is superb, but the pacing is truly rushed.")) == pytest.approx(1)
    assert odds(probability_positive("The acting is superb. The score is haunting. All in all, a failure.")) == (
        pytest.approx(16 / 19)
    )
    assert odds(probability_positive("I would recommend it to anyone.")) == pytest.approx(19)
    assert odds(probability_positive("I would not recommend it to anyone.")) == pytest.approx(1 / 19)
    assert odds(probability_positive("The ending is hardly worth the wait.")) == pytest.approx(1 / 4)


def test_letter_case_and_prompt_do_not_matter() -> None:
    text = "The plot is gripping. I give it five stars out of five."
    prompt = 'Review of "The Silent Harbor", a slow-burning thriller:'
    assert probability_positive("The acting iſ ſuperb.") == pytest.approx(0.8)  # a long s folds to an s
    assert probability_positive(text.upper()) == probability_positive(text)
    assert probability_positive(f"{prompt} {text}") == probability_positive(f" {text}\n") == probability_positive(text)
    assert well_formed(f"{prompt} {text}") == well_formed(text) == 1.0


@pytest.mark.parametrize(
    "text", ["", "   ", "...", "What a day.", "I saw it last night on my own.", "日本 \x00 <b>", "ſuperb ı"]
)
def test_a_text_without_evidence_is_a_coin_toss(text: str) -> None:
    assert probability_positive(text) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "superb superb superb superb",
        "superb, gripping, haunting, witty, a triumph.",
        "Superb. Gripping. A triumph. Five stars.",
        "The acting is superb superb.",
        "The acting is superb and gripping and haunting and a triumph.",
        "The acting is superb",  # cut before its full stop
        "Plot the is gripping.",
    ],
)
def test_babble_earns_nothing(text: str) -> None:
    assert probability_positive(text) == 0.5
    assert well_formed(text) == 0.0


def test_saying_it_twice_proves_it_once() -> None:
    once = "The acting is superb."
    assert probability_positive(" ".join([once] * 20)) == probability_positive(once) == pytest.approx(0.8)


def test_posterior_is_calibrated_and_sentiments_average_out(written: list[reviews.Review]) -> None:
    """Of the reviews that are given probability p, a share p is positive: the definition of a right posterior."""
    judged = [(probability_positive(review.text), review.positive) for review in written]
    assert statistics.mean(p for p, _ in judged) == pytest.approx(0.5, abs=0.01)
    assert statistics.mean(p for p, positive in judged if positive) > 0.9
    assert statistics.mean(p for p, positive in judged if not positive) < 0.1
    for low in range(10):
        group = [(p, positive) for p, positive in judged if low <= 10 * p < low + 1]
        if len(group) >= 100:
            expected, share = (statistics.mean(column) for column in zip(*group, strict=True))
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(group))


def test_the_grammar_writes_what_it_recognises(written: list[reviews.Review]) -> None:
    assert all(well_formed(review.text) == 1.0 for review in written)
    for review in written[:5000]:
        phrases = reviews._phrases().findall(review.text.casefold())
        assert len(phrases) == len(set(phrases)), "a phrase said twice would be evidence that the posterior ignores"
    assert 20 <= statistics.mean(len(review.text.split()) for review in written) <= 45
    assert {len(reviews._sentences(review.text)) for review in written} == {2, 3, 4}
    assert len({review.text for review in written}) > 0.99 * len(written)
    assert len({word for review in written for word in re.findall(r"[\w'-]+", review.text.lower())}) < 600


def test_a_broken_sentence_lowers_the_share() -> None:
    assert well_formed("The acting is superb. The the plot gripping. I would rather sleep.") == pytest.approx(2 / 3)
    assert well_formed("The acting is superb, but the plot is gripping.") == 0.0  # both praise: no "but"
    assert well_formed("The camera work is witty.") == 0.0  # a phrase of another aspect


def test_no_phrase_is_on_two_sides_or_inside_neutral_text() -> None:
    sides: dict[str, set[str]] = {}
    for symbol, options in RULES.items():
        for option in options:
            words = re.sub(r"<[^>]+>", "_", option)
            for phrase in reviews._phrases().findall(words):
                assert "<" not in option and symbol[-1] in "+-", f"{phrase!r} inside {option!r} of {symbol!r}"
                assert phrase == option, f"{phrase!r} hides {option!r}"
                sides.setdefault(phrase, set()).add(symbol)
    assert set(sides) == set(reviews._evidence())
    assert all(len(symbols) == 1 for symbols in sides.values()), "a phrase belongs to one symbol"


def test_same_seed_same_bytes_other_seed_other_texts() -> None:
    for write in (write_corpus, write_examples, write_pairs, write_prompts):
        assert write(20, 7) == write(20, 7)
        assert write(20, 7)[:10] == write(10, 7), "more rows never change the earlier ones"
        assert write(20, 7) != write(20, 8)
    assert not set(write_corpus(200, 0)) & {f"{e.prompt}{e.completion}" for e in write_examples(200, 0)}


def test_a_literal_so_that_the_corpus_never_changes_unnoticed() -> None:
    assert write_corpus(1, 0) == [LITERAL]


def test_completions_continue_prompts_as_in_the_corpus() -> None:
    form = re.compile(r'Review of "[^"]+", an? [^:]+: [A-Z].*[.]')
    texts = write_corpus(50, 1) + [f"{e.prompt}{e.completion}" for e in write_examples(50, 1)]
    texts += [f"{pair.prompt}{answer}" for pair in write_pairs(50, 1) for answer in (pair.chosen, pair.rejected)]
    assert all(form.fullmatch(text) and well_formed(text) == 1.0 for text in texts)


def test_an_opening_names_the_genre_of_the_prompt() -> None:
    rng = random.Random(3)
    prompt = 'Review of "The Silent Harbor", a recent western:'
    texts = [write_review(rng, prompt=prompt).text for _ in range(200)]
    named = {genre for text in texts for genre in RULES["genre"] if f"this {genre} " in text.lower()}
    assert named == {"western"}


def test_pairs_prefer_the_truly_better_review_but_for_noise() -> None:
    gaps = [log_odds_positive(p.chosen) - log_odds_positive(p.rejected) for p in write_pairs(2000, 0)]
    assert all(abs(gap) >= PAIR_GAP for gap in gaps)
    assert sum(gap < 0 for gap in gaps) / len(gaps) == pytest.approx(0.05, abs=0.02)
    assert all(
        probability_positive(p.chosen) > probability_positive(p.rejected) for p in write_pairs(200, 0, noise=0.0)
    )


def test_held_out_titles_are_used_nowhere_else() -> None:
    held_out = {title(p.prompt) for p in write_prompts(300, 0, held_out=True)}
    seen = {title(text) for text in write_corpus(3000, 0)}
    seen |= {title(row.prompt) for row in [*write_examples(1000, 0), *write_pairs(500, 0), *write_prompts(1000, 0)]}
    assert len(held_out) > 100
    assert all(map(is_held_out, held_out)) and not any(map(is_held_out, seen))


def title(text: object) -> str:
    found = re.match(r'Review of "([^"]+)"', str(text))
    assert found
    return found[1]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(DataError, match=r"noise=1\.5 is not a probability"):
        write_pairs(1, 0, noise=1.5)
    with pytest.raises(DataError, match="'Tell me a joke' is not a prompt for a film review"):
        write_review(random.Random(0), prompt="Tell me a joke")


def test_sentiment_can_be_asked_for() -> None:
    rng = random.Random(1)
    assert {write_review(rng, sentiment).positive for sentiment in (True, True, True)} == {True}
    assert statistics.mean(probability_positive(write_review(rng, False).text) for _ in range(500)) < 0.15
    assert write_prompt(random.Random(5)) == write_prompt(random.Random(5))
