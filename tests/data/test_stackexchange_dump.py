"""Posts.xml: every row read or reported, broken files refused by place, joined on disk."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pytest

from accord.data import stackexchange_dump
from accord.data.stackexchange_dump import PostStore, StoredQuestion
from accord.errors import DataError
from data.stackexchange_posts import HEAD, answer, dump, question, row

ROWS = [
    question(1, accepted=4, title="a < b"),
    answer(2, 1, -3),
    question(3, ClosedDate="2020-01-01"),
    answer(4, 1, 7, "<p>so &amp; so\n</p>"),
    answer(5, 3, 1),
    answer(6, 99, 1),
]


@pytest.fixture
def store():
    made = PostStore()
    yield made
    made.close()


def test_questions_get_their_answers_wherever_they_stand(store, tmp_path: Path):
    posts = store.fill(dump(tmp_path / "Posts.xml", ROWS))
    assert (posts.rows, posts.questions, posts.answers, posts.left_out) == (6, 2, 4, {})
    assert list(store.questions()) == [
        StoredQuestion(1, 4, None, ((2, -3), (4, 7))),
        StoredQuestion(3, None, "closed", ((5, 1),)),
    ]
    assert store.text(1) == ("a < b", "<p>Why?</p>", ["<p>answer 2</p>", "<p>so &amp; so\n</p>"])
    assert store.orphans() == 1


def test_an_answer_before_its_question_is_joined_too(store, tmp_path: Path):
    store.fill(dump(tmp_path / "Posts.xml", reversed(ROWS)))
    assert [(q.id, q.votes) for q in store.questions()] == [(1, ((2, -3), (4, 7))), (3, ((5, 1),))]


@pytest.mark.parametrize(("name", "pack"), [("Posts.xml.gz", gzip.compress), ("Posts.xml.bz2", bz2.compress)])
def test_packed_dumps(store, tmp_path: Path, name, pack):
    plain = dump(tmp_path / "Posts.xml", ROWS)
    (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    assert store.fill(tmp_path / name).answers == 4
    (tmp_path / name).write_bytes(pack(plain.read_bytes())[:-20])
    with pytest.raises(DataError, match="cannot be read beyond row"):
        PostStore().fill(tmp_path / name)


def test_small_chunks_change_nothing(store, tmp_path: Path, monkeypatch):
    """Rows, characters and batches are cut anywhere."""
    monkeypatch.setattr(stackexchange_dump, "CHUNK", 7)
    monkeypatch.setattr(stackexchange_dump, "BATCH", 2)
    told: list[int] = []
    path = dump(tmp_path / "Posts.xml", [*ROWS, question(7, title="größer 😀")])
    posts = store.fill(path, told.append)
    assert (posts.rows, posts.questions, posts.answers) == (7, 3, 4)
    assert store.text(7)[0] == "größer 😀"
    assert told == sorted(told) and told[-1] == path.stat().st_size


def test_rows_that_break_a_rule_are_reported_with_their_place(store, tmp_path: Path):
    bad = [
        row(Id=20, Body="x"),
        row(PostTypeId=1, Body="x"),
        row(Id="1e3", PostTypeId=1),
        row(Id=21, PostTypeId=2, Score=1),
        row(Id=22, PostTypeId=2, ParentId=1, Score="many"),
        row(Id="9" * 30, PostTypeId=1),
        row(Id=24, PostTypeId=1, AcceptedAnswerId="x"),
        "<post/>\n",
    ]
    path = dump(
        tmp_path / "Posts.xml", [*ROWS, *bad, row(Id=30, PostTypeId=5), answer(31, 1, 2, DeletionDate="2020"), ROWS[1]]
    )
    posts = store.fill(path)
    assert posts.rows == posts.questions + posts.answers + sum(posts.left_out.values()) == 17
    assert posts.left_out["it is a tag's wiki"] == posts.left_out["it is a deleted answer"] == 1
    assert posts.left_out["its id was there before"] == 1
    assert len(posts.bad) == 8
    first = posts.bad[0]
    place = path.read_bytes().index(b'<row Id="20"')
    assert str(first) == f"row 7 (byte {place:,}): has no PostTypeId"
    assert [b.reason for b in posts.bad[1:4]] == [
        "has no Id",
        "has Id '1e3'; it must be a whole number",
        "has no ParentId",
    ]


def test_bad_rows_are_kept_in_bounds(store, tmp_path: Path):
    posts = store.fill(dump(tmp_path / "Posts.xml", [row(Id=f"x{k}", PostTypeId=1) for k in range(500)]))
    assert len(posts.bad) == 20 and posts.left_out == {"has Id '…'; it must be a whole number": 500}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + ROWS[0] + ROWS[1][:40], r"cut off after row 1 \(byte "),
        (HEAD + ROWS[0], "cut off after row 1"),
        ("", "cut off after row 0"),
        (
            HEAD + ROWS[0] + '<row Id="2" Id="3" /></posts>',
            r"not well-formed XML at byte \d+ \(line 4, after row 1\): dupl",
        ),
        (HEAD + ROWS[0] + '<row Body="\x01" /></posts>', "not well-formed XML at byte"),
        ("<users></users>", "holds <users>; Posts.xml is needed"),
        ("PK\x03\x04 no xml", "not well-formed XML"),
    ],
)
def test_a_file_that_is_broken_is_refused_by_place(store, tmp_path: Path, text, said):
    path = tmp_path / "Posts.xml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        store.fill(path)


def test_entities_are_not_expanded(store, tmp_path: Path):
    """Neither the billion laughs nor a file of the machine."""
    laughs = (
        '<!DOCTYPE posts [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><posts><row Id="1" PostTypeId="1" Body="&b;"/></posts>'
    )
    file = '<!DOCTYPE posts [<!ENTITY x SYSTEM "file:///etc/passwd">]><posts><row Id="1" PostTypeId="1" Title="&x;"/></posts>'
    for text in (laughs, file):
        (tmp_path / "Posts.xml").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="declares the XML entity"):
            store.fill(tmp_path / "Posts.xml")


def test_a_row_without_end_does_not_fill_the_memory(store, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stackexchange_dump, "LONGEST_ROW", 1 << 16)
    monkeypatch.setattr(stackexchange_dump, "CHUNK", 1 << 12)
    path = dump(tmp_path / "Posts.xml", [ROWS[0], '<row Body="' + "x" * (1 << 20)])
    with pytest.raises(DataError, match=r"row 1 \(byte \d+\) has more than"):
        store.fill(path)


@pytest.mark.parametrize("name", ["x.stackexchange.com.7z", "Posts.zip"])
def test_an_archive_says_how_it_is_unpacked(store, tmp_path: Path, name):
    (tmp_path / name).write_bytes(b"7z")
    with pytest.raises(DataError, match=rf"unpack it \(`7z x {name} Posts.xml`\)"):
        store.fill(tmp_path / name)


def test_no_file(store, tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        store.fill(tmp_path / "Posts.xml")
