"""The kinds of reward sources and their options, one section each. A kind may be written as its main option alone."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from accord.config.base import Section


class Kind(Section):
    """A kind of source. `{lexicon: vader}` is short for `{lexicon: {words: vader}}`."""

    main: ClassVar[str]
    """The option that may stand alone."""

    @model_validator(mode="before")
    @classmethod
    def _from_main_option(cls, value: Any) -> Any:
        return value if isinstance(value, (Mapping, Section)) else {cls.main: value}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that the source cannot do without."""
        return ()


def _fields(template: str) -> list[str]:
    """Names in braces in a template.

    Raises:
        ValueError: it is no template, or a name in it is more than a name.
    """
    try:
        found = [(name, spec, turn) for _, name, spec, turn in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is meant as text is written twice: {{{{ or }}}}") from error
    for name, spec, turn in found:
        if not name.isidentifier():
            raise ValueError(f"{{{name}}} is no name; a brace that is meant as text is written twice: {{{{ or }}}}")
        if spec or turn:  # which would fail, or not, by what a row holds
            given = f"{name}!{turn}" if turn else f"{name}:{spec}"
            raise ValueError(f"{{{given}}} has a format behind its name; columns come as they are: write {{{name}}}")
    return [name for name, _, _ in found]


class ClassifierConfig(Kind):
    """A text classifier of transformers with a tokenizer of its own (sentiment, toxicity, or a reward model of another
    vocabulary). The score is the probability or the logit of one label."""

    main: ClassVar[str] = "model"
    model: str
    """Folder or hub name of a sequence-classification model, or of a PEFT adapter that is one."""
    label: str | None = None
    """The label to read: its name or number in the model's `id2label`. Not needed if the model has one label."""
    of: Literal["response", "prompt_response"] = "response"
    """What is classified: the response alone, or the prompt followed by the response."""
    value: Literal["probability", "logit"] = "probability"
    """`probability`: softmax over the labels; the sigmoid of the label's own logit if the model has one label or its config says
    `multi_label_classification`. `logit`: the number before that."""
    batch_size: int = Field(32, ge=1)
    """Texts that go through the model at once."""
    too_long: Literal["cut", "error"] = "cut"
    """What to do with a text that the model cannot read as a whole. `cut`: of a response its end is left out, of prompt and
    response the prompt's beginning; counted in `env/reward_count`. `error`: the run stops."""


class LexiconConfig(Kind):
    """Sentiment from words: vaderSentiment, an opinion lexicon, or a list with weights."""

    main: ClassVar[str] = "words"
    words: str
    """`vader`: the compound score of the library vaderSentiment. Or a file with a word and its weight a line; or a folder with
    `positive-words.txt` and `negative-words.txt` (the opinion lexicon of Hu and Liu 2004), which weigh 1 and -1."""
    divide_by: Literal["matches", "words", "none"] = "matches"
    """The sum of the weights is divided by the number of words found in the list, by the number of all words, or by nothing.
    A response without any such word scores 0. Not for `vader`, which has a scale of its own."""
    once: bool = False
    """Count each word once, so that repeating it earns nothing. Not for `vader`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.words == "vader" and (self.divide_by != "matches" or self.once):
            raise ValueError("`divide_by` and `once` are for lists of words; vader has a scale of its own")
        return self


class VerifierConfig(Kind):
    """Checks the answer of a response against the known one: 1 if they are equal, else 0. Needs the extra `verify`."""

    main: ClassVar[str] = "type"
    type: Literal["math"]
    """`math`: the library math-verify, which takes `\\boxed{...}`, LaTeX and plain numbers; what follows `####` is the answer
    in GSM8K's way."""
    answer: str = "answer"
    """Column with the right answer, or with a solution that ends in it."""
    timeout: float = Field(10.0, gt=0)
    """Seconds of CPU time that one response may take, so that a busy machine makes no answer wrong; on the clock it may be four
    times as many. A response that takes longer scores 0 and is counted."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The answer."""
        return (self.answer,)


class RegexConfig(Kind):
    """1 for a response that matches a regular expression, else 0."""

    main: ClassVar[str] = "pattern"
    pattern: str
    """The expression, in the syntax of the library `regex`, a superset of Python's; `(?s)` lets a dot match line breaks."""
    match: Literal["search", "full"] = "search"
    """Whether it may match anywhere, or must match the whole response."""
    timeout: float = Field(5.0, gt=0)
    """Seconds that one response may take; more is an error, since the expression is at fault."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        import regex

        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern


class FormatConfig(Kind):
    """Whether a response is a row of tagged parts such as `<think>...</think> <answer>...</answer>`, with nothing beside
    them (the format reward of DeepSeek-R1, arXiv:2501.12948, section 2.2.2)."""

    main: ClassVar[str] = "tags"
    tags: tuple[str, ...] = Field(min_length=1)
    """Names of the tags, in order; each opens and closes once."""
    partial: bool = False
    """Score the share of the opening and closing tags that occur exactly once, instead of 1 or 0 for the whole."""

    @field_validator("tags")
    @classmethod
    def _are_names(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [tag for tag in tags if not tag.replace("-", "_").isidentifier()]
        if wrong or len(set(tags)) < len(tags):
            raise ValueError(
                f"tags are different names without brackets, such as [think, answer] (given: {list(tags)})"
            )
        return tags


class LengthConfig(Kind):
    """How far a response's length is from what is wanted: 0 within the bounds, falling to -1 outside."""

    main: ClassVar[str] = "target"
    target: int | None = Field(None, ge=1)
    """The one length that scores 0; instead of `min` and `max`."""
    min: int | None = Field(None, ge=1)
    """Shortest length that scores 0."""
    max: int | None = Field(None, ge=1)
    """Longest length that scores 0."""
    unit: Literal["tokens", "words", "characters"] = "tokens"
    """What is counted. Tokens are the policy's, the stop token included."""
    scale: float | None = Field(None, gt=0)
    """Distance from the bound at which the score is -1; by default the bound itself."""

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if (self.target is None) == (self.min is None and self.max is None):
            raise ValueError("give `target`, or `min` or `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` ({self.min}) is greater than `max` ({self.max})")
        return self


class RepetitionConfig(Kind):
    """Minus the share of n-grams that are repeated: -(1 - different n-grams / n-grams), the seq-rep-n of Welleck et al. 2019
    (arXiv:1908.04319, section 6.1). A response of fewer than n units scores 0."""

    main: ClassVar[str] = "n"
    n: int = Field(4, ge=1)
    """Length of the n-grams (Welleck et al.: 4)."""
    unit: Literal["tokens", "words"] = "tokens"
    """What an n-gram is made of. Tokens are the policy's."""


class CodeConfig(Kind):
    """Runs the code of a response against tests, in a process of its own with limits. The score is the share of the tests that
    pass. No security boundary: see docs/rewards.md, and run it in a container."""

    main: ClassVar[str] = "tests"
    tests: str
    """Column with the tests: Python text, or a list of such texts; a test passes if it raises nothing."""
    before: str | None = None
    """Code that runs before the response's: a column, or `prompt` for the prompt itself, where the response completes it."""
    after: str | None = None
    """Code added to each test, with columns in braces: `check({entry_point})` for HumanEval."""
    all_or_nothing: bool = False
    """1 if all tests pass, else 0."""
    timeout: float = Field(10.0, gt=0)
    """Seconds of CPU time that the code of one response may take, rounded up to whole ones, so that a busy machine makes no code
    wrong; on the clock it may be four times as many. A response that takes longer scores 0 and is counted."""
    memory_mb: int = Field(512, ge=64)
    """Address space of the process, MiB."""
    file_mb: int = Field(1, ge=1)
    """Largest file that it may write, MiB."""
    workers: int | None = Field(None, ge=1)
    """Responses that run at the same time; by default as many as there are processors for this process: those that it may run on,
    within the container's quota, shared among the ranks of the machine."""

    @field_validator("after")
    @classmethod
    def _is_template(cls, after: str | None) -> str | None:
        _fields(after or "")
        return after

    @property
    def columns(self) -> tuple[str, ...]:
        """The tests, and what `before` and `after` name."""
        before = () if self.before in (None, "prompt") else (str(self.before),)
        return (self.tests, *before, *_fields(self.after or ""))


class RemoteConfig(Kind):
    """What is asked over HTTP."""

    main: ClassVar[str] = "address"
    address: str
    """Address of the server, `http://HOST:PORT` or `https://...`."""
    key: str | None = None
    """Name of the environment variable that holds the API key, sent as a bearer token. The key itself is never written."""
    timeout: float = Field(60.0, gt=0)
    """Seconds that one request may take."""
    deadline: float = Field(600.0, gt=0)
    """Seconds that all requests of one batch of rollouts may take, repetitions and pauses included."""
    attempts: int = Field(4, ge=1)
    """How often a request is tried that fails for a passing reason: no connection, no answer in time, status 408,
    425, 429 or 5xx but 501 and 505."""
    pause: float = Field(0.5, ge=0)
    """Seconds before the second attempt; twice as many before each further one, up to 30, and a random part of it."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at the same time."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str) -> str:
        from urllib.parse import urlsplit

        parts = urlsplit(address)
        try:
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            whole = False
        if not whole or parts.query or parts.fragment:
            raise ValueError(f"an address looks like http://127.0.0.1:8000, not {address!r}")
        if parts.username or parts.password:
            raise ValueError("an address without user and password; a key goes into an environment variable: see `key`")
        return address.rstrip("/")

    @field_validator("key")
    @classmethod
    def _is_a_name(cls, key: str | None) -> str | None:
        if key is not None and not key.isidentifier():
            raise ValueError(
                "`key` is the name of an environment variable, such as OPENAI_API_KEY, and not the key itself"
            )
        return key


class UrlConfig(RemoteConfig):
    """A reward server: `accord serve-reward`, or anything that speaks its protocol (docs/rewards.md)."""

    batch_size: int = Field(64, ge=1)
    """Responses in one request."""


class JudgeConfig(RemoteConfig):
    """A language model that gives a mark, behind any endpoint that speaks OpenAI's chat completions."""

    model: str
    """The judge's name at that endpoint."""
    prompt: str = (
        "Rate how good the response to the prompt is, from {min} (useless) to {max} (perfect).\n\n"
        "[Prompt]\n{prompt}\n\n[Response]\n{response}\n\n"
        "Think briefly, then end with one line that holds the number alone."
    )
    """What the judge reads: a template with {prompt}, {response}, {min}, {max} and columns of the data in braces."""
    system: str | None = None
    """A system message before it, as it is."""
    json_key: str | None = None
    """Read the mark from this key of the JSON object in the reply; by default it is the last number of the reply."""
    regex: str | None = None
    """Read the mark from the first group of the last match of this expression instead."""
    min: float = 0.0
    """Lowest mark; a lower one counts as a reply without a mark."""
    max: float = 10.0
    """Highest mark; a higher one counts as a reply without a mark."""
    scale: bool = True
    """Bring marks to 0 to 1: (mark - min) / (max - min)."""
    questions: int = Field(3, ge=1)
    """How often the judge is asked until a reply has a mark."""
    on_unparsable: Literal["error", "none"] = "error"
    """After the last reply without a mark: stop with that reply, or go on with `None`, counted."""
    temperature: float = Field(0.0, ge=0)
    """Of the judge."""
    max_tokens: int = Field(512, ge=1)
    """Longest reply. One that reaches it lacks its end, and counts as a reply without a mark."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"`min` ({self.min:g}) must be less than `max` ({self.max:g})")
        if self.json_key is not None and self.regex is not None:
            raise ValueError("give one of `json_key` and `regex`")
        if "response" not in _fields(self.prompt):
            raise ValueError("the judge's `prompt` has no {response}, so it would not see what it marks")
        if self.regex is not None:
            import regex

            try:
                groups = regex.compile(self.regex).groups
            except regex.error as error:
                raise ValueError(f"{self.regex!r} is not a regular expression: {error}") from error
            if groups < 1:
                raise ValueError(
                    f"`regex` needs a group around the mark, such as 'Mark: (\\d+)' (given: {self.regex!r})"
                )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that the prompt names."""
        own = ("prompt", "response", "min", "max")
        return tuple(dict.fromkeys(name for name in _fields(self.prompt) if name not in own))
