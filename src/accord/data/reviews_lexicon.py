"""The words and sentence forms of the film-review grammar in `reviews.py`.

`RULES` maps a symbol to its options; `<name>` inside an option stands for one option of that symbol. A symbol ending in
`+` or `-` is evaluative: its phrases are evidence for or against the film. One ending in `0` is neutral, as is any
symbol without a sign. No neutral text contains an evaluative phrase (a test checks it), so that a parse is unique.
"""

from __future__ import annotations

from typing import Final

_ASPECTS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]] = {
    "acting": (
        ("the acting", "the cast", "the main performance", "the young lead", "the villain"),
        ("superb", "convincing", "magnetic", "full of warmth", "a pleasure to watch", "moving"),
        ("wooden", "stiff", "lifeless", "badly miscast", "painful to watch", "out of its depth"),
    ),
    "writing": (
        ("the plot", "the story", "the script", "the dialogue", "the humor", "the narration"),
        ("clever", "gripping", "original", "witty", "full of surprises", "a delight to follow"),
        ("predictable", "thin", "clumsy", "muddled", "full of clichés", "hard to care about"),
    ),
    "craft": (
        ("the camera work", "the lighting", "the set design", "the score", "the music", "the sound design"),
        ("stunning", "inventive", "elegant", "haunting", "beautiful throughout", "perfect for the mood"),
        ("ugly", "sloppy", "careless", "generic", "distracting throughout", "wrong for the mood"),
    ),
    "pace": (
        ("the pacing", "the middle act", "the final hour", "the ending"),
        ("exciting", "satisfying", "confident", "well judged", "worth the wait"),
        ("sluggish", "tedious", "rushed", "much too long", "hardly worth the wait"),
    ),
}
"""Aspect: subjects, praise, blame. Each subject fits each phrase of its own aspect."""

_ACTS: Final = ("holds the film together", "lifts every scene", "won me over at once", "gets better by the minute")
_FAILS: Final = ("drags the film down", "spoils every scene", "lost me at once", "gets worse by the minute")

_CLAUSES: Final[dict[str, tuple[str, ...]]] = {
    f"clause{sign}": tuple(
        f"<{aspect}> {verb}"
        for aspect in _ASPECTS
        for verb in (f"<is> <{aspect}{sign}>", f"<is> <adverb> <{aspect}{sign}>", f"<does{sign}>")
    )
    for sign in "+-"
}
_PAIRS: Final[dict[str, tuple[str, ...]]] = {
    f"aspects{one}{other}": tuple(
        f"<clause{one}>, {word} <clause{other}>."
        # "But" needs something to object to.
        for word in (("and", "while") if one == other else ("and", "while", "but", "but"))
    )
    for one in "+-0"
    for other in "+-0"
}

_FIRST: Final = (
    "Silent",
    "Broken",
    "Golden",
    "Distant",
    "Hidden",
    "Crooked",
    "Hollow",
    "Scarlet",
    "Gentle",
    "Frozen",
    "Wandering",
    "Second",
    "Paper",
    "Northern",
    "Last",
    "Painted",
    "Midnight",
    "Forgotten",
    "Burning",
    "Velvet",
)
_SECOND: Final = (
    "Harbor",
    "Garden",
    "Bridge",
    "Letter",
    "River",
    "Window",
    "Orchard",
    "Road",
    "Lantern",
    "Island",
    "Mirror",
    "Tower",
    "Shore",
    "Canyon",
    "Station",
    "Clock",
    "Valley",
    "Door",
    "Winter",
    "Map",
)
_THIRD: Final = (
    "Fox",
    "Queen",
    "Stranger",
    "Sparrow",
    "Moon",
    "Soldier",
    "Carpenter",
    "Wolf",
    "Widow",
    "Thief",
    "Summer",
    "Tiger",
    "Ghost",
    "Painter",
    "Storm",
    "Captain",
    "Rose",
    "Giant",
    "Crow",
    "King",
)

RULES: Final[dict[str, tuple[str, ...]]] = {
    # Sentences about aspects: the key names the polarity of each clause.
    "aspects+": ("<clause+>.", "<view> <clause+>."),
    "aspects-": ("<clause->.", "<view> <clause->."),
    "aspects0": ("<clause0>.", "<view> <clause0>."),
    **_PAIRS,
    **_CLAUSES,
    "clause0": tuple(f"<{aspect}> <is> <usual0>" for aspect in _ASPECTS),
    **{aspect: subjects for aspect, (subjects, _, _) in _ASPECTS.items()},
    **{f"{aspect}+": praise for aspect, (_, praise, _) in _ASPECTS.items()},
    **{f"{aspect}-": blame for aspect, (_, _, blame) in _ASPECTS.items()},
    "does+": _ACTS,
    "does-": _FAILS,
    "usual0": (
        "what the trailer promised",
        "typical of the genre",
        "typical of this director",
        "much as I expected",
        "hard to put into words",
    ),
    "is": ("is", "is", "is", "remains", "seems", "proves"),
    "adverb": ("truly", "simply", "clearly", "honestly", "really"),
    "view": ("I think that", "to my mind,", "for me,", "above all,", "even so,"),
    # Openings: always neutral.
    "opening": (
        "I saw it <when> <company>.",
        "this <genre> follows <hero> who <quest>.",
        "<hero> <quest> in this <genre>.",
        "the film opens <place> and ends <place>.",
    ),
    "when": ("last night", "on a rainy Sunday", "at a small festival", "during a long flight", "on opening weekend"),
    "company": ("with my sister", "with two old friends", "with my parents", "on my own", "in a full theater"),
    "hero": ("a young doctor", "a retired sailor", "a lonely teacher", "a stubborn detective", "a farmer", "a pianist"),
    "quest": (
        "returns to a quiet village",
        "searches for a missing brother",
        "inherits an empty hotel",
        "finds a box of old letters",
        "crosses the mountains in winter",
        "has one week to pay a debt",
    ),
    "place": (
        "in a crowded station",
        "on a frozen lake",
        "in a dark kitchen",
        "at sea",
        "in the desert",
        "at a wedding",
    ),
    # Verdicts.
    "verdict+": (
        "in the end it is <sum+>.",
        "all in all, <sum+>.",
        "I would <would+>.",
        "this is one of the <rank+> films of the year.",
        "I give it <stars+> out of five.",
        "I left the theater <mood+>.",
    ),
    "verdict-": (
        "in the end it is <sum->.",
        "all in all, <sum->.",
        "I would <would->.",
        "this is one of the <rank-> films of the year.",
        "I give it <stars-> out of five.",
        "I left the theater <mood->.",
    ),
    "verdict0": (
        "I give it three stars out of five.",
        "you may want to see it and decide for yourself.",
        "I am still not sure what to think of it.",
        "fans of the genre know what to expect.",
    ),
    "sum+": ("a triumph", "a small gem", "a modern classic", "time well spent", "a real treat"),
    "sum-": ("a failure", "a dreary mess", "a missed chance", "a waste of time", "a real chore"),
    "would+": (
        "gladly watch it again",
        "recommend it to anyone",
        "tell all my friends to see it",
        "see it twice in a week",
    ),
    "would-": ("never watch it again", "not recommend it to anyone", "tell all my friends to skip it", "rather sleep"),
    "rank+": ("best", "finest", "strongest", "most rewarding"),
    "rank-": ("worst", "weakest", "dullest", "most tiresome"),
    "stars+": ("five stars", "four stars"),
    "stars-": ("one star", "two stars"),
    "mood+": ("with a smile", "deeply moved", "full of joy", "wanting more"),
    "mood-": ("with a headache", "deeply bored", "full of regret", "wanting my money back"),
    # Films.
    "prompt": ('Review of "<title>", <style> <genre>:',),
    "title": ("The <first> <second>", "<second> of the <third>", "A <first> <third>", "The <third> and the <second>"),
    "first": _FIRST,
    "second": _SECOND,
    "third": _THIRD,
    "style": (
        "a slow-burning",
        "a low-budget",
        "a three-hour",
        "a black-and-white",
        "a French",
        "a Korean",
        "a recent",
        "an Italian",
    ),
    "genre": ("thriller", "drama", "comedy", "western", "mystery film", "war film", "romance", "musical"),
}
"""The grammar. Texts are written in lower case; the first letter of a sentence is raised when it is written."""
