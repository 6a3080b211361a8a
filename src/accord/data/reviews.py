"""Film reviews from a seeded probabilistic grammar that knows its own truth: the data of `accord quickstart`.

A review is written for a latent sentiment s, positive or negative with probability 1/2 each:

    review   = opening? aspects aspects verdict?         one or two clauses in each sentence about aspects
    polarity = neutral with probability ν; otherwise s, or the opposite of s with probability φ

Each evaluative phrase belongs to one side, and given its polarity nothing else depends on s. So the posterior of s is
exact and short (`probability_positive`): every phrase adds or takes away `log((1 − φ) / φ)`. It is the truth against
which the quickstart judges what a policy writes, whatever a reward model that was learnt from pairs believes.

Same seed, same bytes. Every function draws from a stream of its own, so a corpus and pairs of one seed are independent.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Final

from accord.data.reviews_lexicon import RULES
from accord.errors import DataError
from accord.types import Example, PreferencePair, Prompt

ASPECT_NEUTRAL: Final = 0.15
"""ν of a clause about an aspect."""
ASPECT_FLIP: Final = 0.2
"""φ of a clause about an aspect: even a friendly critic finds that the ending drags."""
VERDICT_NEUTRAL: Final = 0.1
"""ν of a verdict."""
VERDICT_FLIP: Final = 0.05
"""φ of a verdict: it seldom contradicts the critic."""
PAIR_GAP: Final = 1.0
"""Two reviews whose log odds of being positive are closer than this are no pair: nobody could say which is better. One clause
about an aspect counts log 4 = 1.39, so pairs differ by a clause at least, at the ends of the scale as in its middle."""

_SLOT: Final = re.compile(r"<([^<>]+)>")
_PROMPT: Final = re.compile(
    rf'\AReview of "(?P<title>[^"\n]+)", (?:{"|".join(RULES["style"])}) (?P<genre>{"|".join(RULES["genre"])}):'
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
_VERDICTS: Final = frozenset(
    slot for verdict in "+-" for rule in RULES[f"verdict{verdict}"] for slot in _SLOT.findall(rule)
)
_HELD_OUT_SHARE: Final = 5


@dataclass(frozen=True, slots=True)
class Review:
    """A review and the sentiment that it was written for."""

    title: str
    prompt: str
    """`Review of "The Silent Harbor", a slow-burning thriller:`"""
    text: str
    """Two to four sentences, without the prompt and without a space before the first."""
    positive: bool
    """The latent sentiment. The text may say otherwise: `probability_positive` knows what can be told from it."""


def write_prompt(rng: random.Random, *, held_out: bool = False) -> str:
    """A prompt for a film that has not been made yet.

    `held_out` chooses which part of the title space is drawn from: a fifth of it is never used unless asked for.
    """
    while True:
        title = _draw(rng, "title", set())
        if is_held_out(title) == held_out:
            return _draw(rng, "prompt", set(), title=title)


def is_held_out(title: str) -> bool:
    """Whether a title belongs to the fifth of the title space that only `held_out=True` draws from."""
    return zlib.crc32(title.encode()) % _HELD_OUT_SHARE == 0


def write_review(rng: random.Random, sentiment: bool | None = None, *, prompt: str | None = None) -> Review:
    """A review written for `sentiment` (drawn when `None`), of the film in `prompt` (a new one when `None`).

    Raises `DataError` when `prompt` does not have the form of `write_prompt`; the title is free.
    """
    prompt = write_prompt(rng) if prompt is None else prompt
    found = _PROMPT.fullmatch(prompt)
    if found is None:
        example = 'Review of "The Silent Harbor", a slow-burning thriller:'
        raise DataError(f"{prompt!r} is not a prompt for a film review. The grammar knows only the form {example!r}.")
    positive = rng.random() < 0.5 if sentiment is None else sentiment
    used: set[str] = set()
    sentences = [_draw(rng, "opening", used, genre=found["genre"])] if rng.random() < 0.5 else []
    for _ in range(2):
        clauses = 1 if rng.random() < 0.5 else 2
        polarity = "".join(_polarity(rng, positive, ASPECT_NEUTRAL, ASPECT_FLIP) for _ in range(clauses))
        sentences.append(_draw(rng, f"aspects{polarity}", used))
    if rng.random() < 0.9:
        sentences.append(_draw(rng, f"verdict{_polarity(rng, positive, VERDICT_NEUTRAL, VERDICT_FLIP)}", used))
    return Review(found["title"], prompt, " ".join(s[0].upper() + s[1:] for s in sentences), positive)


def write_corpus(n: int, seed: int) -> list[str]:
    """`n` plain texts to learn the language from: a prompt, a space, its review; sentiments mixed."""
    rng = _stream("corpus", seed)
    return [f"{review.prompt} {review.text}" for review in (write_review(rng) for _ in range(n))]


def write_examples(n: int, seed: int) -> list[Example]:
    """`n` prompts with a completion to imitate, sentiments mixed. A completion starts with a space."""
    rng = _stream("examples", seed)
    return [Example(review.prompt, f" {review.text}") for review in (write_review(rng) for _ in range(n))]


def write_pairs(n: int, seed: int, noise: float = 0.05) -> list[PreferencePair]:
    """`n` pairs of reviews of one film, written independently; chosen is the one with the higher posterior.

    Pairs that nearly tie (`PAIR_GAP`) are redrawn. With probability `noise` the label is flipped, as people's are.
    Raises `DataError` when `noise` is not in [0, 1].
    """
    if not 0.0 <= noise <= 1.0:
        raise DataError(f"noise={noise} is not a probability. It must lie between 0 and 1.")
    rng = _stream("pairs", seed)
    pairs: list[PreferencePair] = []
    while len(pairs) < n:
        prompt = write_prompt(rng)
        one, other = (write_review(rng, prompt=prompt).text for _ in range(2))
        gap = log_odds_positive(one) - log_odds_positive(other)
        if abs(gap) >= PAIR_GAP:
            better, worse = (one, other) if (gap > 0) != (rng.random() < noise) else (other, one)
            pairs.append(PreferencePair(prompt, f" {better}", f" {worse}"))
    return pairs


def write_prompts(n: int, seed: int, *, held_out: bool = False) -> list[Prompt]:
    """`n` prompts to answer; with `held_out`, for titles that no other function uses."""
    rng = _stream("held-out prompts" if held_out else "prompts", seed)
    return [Prompt(write_prompt(rng, held_out=held_out)) for _ in range(n)]


def probability_positive(text: str) -> float:
    """Exact posterior that a text (with or without its prompt) was written by a critic who liked the film: σ(log odds)."""
    return 1.0 / (1.0 + math.exp(-log_odds_positive(text)))


def log_odds_positive(text: str) -> float:
    """Logarithm of the posterior odds that a text was written by a critic who liked the film.

        log P(positive | text) / P(negative | text) = Σ ± log((1 − φ) / φ)

    over the distinct evaluative phrases of its well-formed sentences, + for praise and − for blame; φ is 0.05 in a
    verdict and 0.2 elsewhere. 0 when there are none. Letter case is ignored, and the longest phrase wins ("not
    recommend it to anyone" is no recommendation).

    The grammar never says a phrase twice in a text, so a repetition is no evidence; nor is a sentence that it cannot
    have written, for that has probability 0 under both sentiments. Babble that piles up praise therefore earns 0.
    """
    phrases, evidence = _phrases(), _evidence()
    said = {
        phrase
        for sentence in _sentences(text)
        if _well_formed_sentence(sentence)
        for phrase in phrases.findall(sentence)
    }
    return math.fsum(evidence[phrase] for phrase in said)


def well_formed(text: str) -> float:
    """Share of the sentences of a text (with or without its prompt) that the grammar could have written; 0 if empty.

    Read it beside `probability_positive`: it falls when a policy trades its language for its reward.
    """
    sentences = _sentences(text)
    return sum(map(_well_formed_sentence, sentences)) / len(sentences) if sentences else 0.0


def _stream(purpose: str, seed: int) -> random.Random:
    # Seeded by a string, which `random` hashes with SHA-512: neighbouring seeds and purposes share nothing.
    return random.Random(f"{purpose} {seed}")


def _polarity(rng: random.Random, positive: bool, neutral: float, flip: float) -> str:
    if rng.random() < neutral:
        return "0"
    return "+" if positive != (rng.random() < flip) else "-"


def _draw(rng: random.Random, symbol: str, used: set[str], **given: str) -> str:
    """Write out a symbol, with no option twice in a text as long as there is a choice."""
    if symbol in given:
        return given[symbol]
    options = [option for option in RULES[symbol] if option not in used] or RULES[symbol]
    option = rng.choice(options)
    used.add(option)
    return _SLOT.sub(lambda slot: _draw(rng, slot[1], used, **given), option)


@cache
def _pattern(root: str) -> re.Pattern[str]:
    """Everything that a symbol can become, in folded case."""

    def regex(symbol: str) -> str:
        options = (_SLOT.split(option) for option in sorted(set(RULES[symbol])))
        # Splitting by a group puts literal text at the even places and the names of slots at the odd ones.
        forms = ("".join(regex(p) if i % 2 else re.escape(p.casefold()) for i, p in enumerate(o)) for o in options)
        return f"(?:{'|'.join(forms)})"

    return re.compile(regex(root))


@cache
def _sentence_patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(symbol) for symbol in RULES if symbol.startswith(("opening", "aspects", "verdict")))


def _well_formed_sentence(sentence: str) -> bool:
    return any(pattern.fullmatch(sentence) for pattern in _sentence_patterns())


def _sentences(text: str) -> list[str]:
    """The sentences after the prompt, in folded case."""
    body = _PROMPT.sub("", text.lstrip(), count=1).strip().casefold()
    return _SENTENCE_END.split(body) if body else []


@cache
def _evidence() -> dict[str, float]:
    """Evaluative phrase, in folded case: log P(phrase | positive) − log P(phrase | negative), in nats."""
    evidence: dict[str, float] = {}
    for symbol, options in RULES.items():
        flip = VERDICT_FLIP if symbol in _VERDICTS else ASPECT_FLIP
        if symbol[-1] in "+-" and not any(_SLOT.search(option) for option in options):
            ratio = math.log((1.0 - flip) / flip)
            evidence.update((option.casefold(), ratio if symbol[-1] == "+" else -ratio) for option in options)
    return evidence


@cache
def _phrases() -> re.Pattern[str]:
    # Longest first: an alternation takes the first that fits.
    longest_first = sorted(_evidence(), key=lambda phrase: (-len(phrase), phrase))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
