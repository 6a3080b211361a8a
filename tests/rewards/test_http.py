"""Scores from a server: the protocol, and each way in which a server fails. A failure is never a score."""

from __future__ import annotations

import time
from dataclasses import replace
from email.utils import formatdate

import pytest

from accord.config import UrlConfig
from accord.errors import ConfigError, RewardError
from accord.rewards import UrlReward
from accord.rewards.client import _retry_after
from rewards.scripted import break_off, dead_address, drip, hang_up, lengths, reply, server, slow

QUICK = {"pause": 0.01, "timeout": 5.0, "deadline": 20.0}


def source(script, **options) -> UrlReward:
    return UrlReward(UrlConfig(address=script.address, **QUICK | options), "remote")


def test_texts_and_columns_go_out_and_scores_come_back_in_order(rollouts):
    with server(reply(lengths)) as script:
        assert source(script).score(rollouts) == [1.0, 4.0, 1.0]
    assert script.bodies == [
        {
            "prompts": ["2+2=", "3+3=", "1+1="],
            "responses": ["4", "five", "2"],
            "columns": {"answer": ["4", "6", None], "level": [1, None, 3]},
        }
    ]
    assert script.headers[0]["path"] == "/score" and "Authorization" not in script.headers[0]


def test_batches_are_asked_at_the_same_time_and_put_back_in_order(rollouts):
    many = [replace(rollouts[0], response_text="x" * n) for n in range(20)]
    with server(slow(0.05, reply(lengths))) as script:
        assert source(script, batch_size=3, concurrency=4).score(many) == [float(n) for n in range(20)]
    assert sorted(len(body["responses"]) for body in script.bodies) == [2] + [3] * 6
    assert 2 <= script.most_at_once <= 4


def test_null_means_that_the_reward_does_not_apply(rollouts):
    with server(reply({"scores": [None, 2, 0.5]})) as script:
        assert source(script).score(rollouts) == [None, 2.0, 0.5]


FLAKY = {
    "busy": reply({"error": "busy"}, 503),
    "too_many": reply({}, 429, Retry_After="0"),
    "overloaded": reply({"error": "overloaded"}, 529),
    "hangs_up": hang_up,
    "breaks_off": break_off,
}


@pytest.mark.parametrize("fault", FLAKY)
def test_a_failure_that_passes_is_tried_again(fault, rollouts):
    with server(FLAKY[fault], FLAKY[fault], reply(lengths)) as script:
        remote = source(script)
        assert remote.score(rollouts) == [1.0, 4.0, 1.0]
        assert remote.take_counts() == {"repeated": 2} and remote.take_counts() == {"repeated": 0}
    assert len(script.bodies) == 3 and script.bodies[0] == script.bodies[2]


def test_pauses_grow_and_a_server_may_ask_for_more(rollouts):
    with server(reply({}, 503), reply({}, 503), reply({}, 503), reply(lengths)) as script:
        source(script, pause=0.1).score(rollouts)
    gaps = [b - a for a, b in zip(script.times, script.times[1:], strict=False)]
    assert all(low <= gap for low, gap in zip((0.05, 0.1, 0.2), gaps, strict=True))
    with server(reply({}, 503, Retry_After="0.5"), reply(lengths)) as script:
        source(script).score(rollouts)
    assert script.times[1] - script.times[0] >= 0.5


def test_a_server_may_name_the_time(rollouts):
    later = formatdate(time.time() + 2, usegmt=True)  # whole seconds, so at least one
    with server(reply({}, 503, Retry_After=later), reply(lengths)) as script:
        source(script, pause=0).score(rollouts)
    assert script.times[1] - script.times[0] >= 0.8
    with server(reply({}, 503, Retry_After="soon"), reply(lengths)) as script:
        source(script, pause=0).score(rollouts)
    assert script.times[1] - script.times[0] < 0.8


def test_a_server_may_ask_for_longer_than_pauses_grow(rollouts, monkeypatch):
    monkeypatch.setattr("accord.rewards.client.LONGEST_PAUSE", 0.05)
    with server(reply({}, 503, Retry_After="0.6"), reply(lengths)) as script:
        source(script, pause=10).score(rollouts)
    assert script.times[1] - script.times[0] >= 0.6


@pytest.mark.parametrize("value", ["3600", "inf"])
def test_a_server_that_asks_for_longer_than_the_deadline_ends_the_run_at_once(value, rollouts):
    said = r"attempts: 1: 1\. HTTP 503 .*; it asks to wait (3600|inf) s \(Retry-After\), .* deadline of 20 s"
    started = time.monotonic()
    with server(reply({}, 503, Retry_After=value), reply(lengths)) as script, pytest.raises(RewardError, match=said):
        source(script).score(rollouts)
    assert len(script.bodies) == 1 and time.monotonic() - started < 5


DATES = ["Fri, 31 Dec 2027 23:59:59 +99999999999999999999", "Mon, 01 Jan 1990 00:00:00 GMT"]


@pytest.mark.parametrize("value", ["nan", "-5", "soon", *DATES])
def test_what_is_no_time_to_wait_is_none(value):
    assert _retry_after(value) == 0.0


LASTING = {
    "always_busy": (
        reply({"error": "busy"}, 503),
        {"attempts": 2},
        r"attempts: 2: 1\. HTTP 503 .*busy.*; 2\. HTTP 503",
    ),
    "hangs_up": (hang_up, {"attempts": 2}, r"attempts: 2: 1\. .*(closed|reset|Remote)"),
    "breaks_off": (break_off, {"attempts": 1}, "attempts: 1: 1. .*(broke off after 12 of 1000 bytes|IncompleteRead)"),
    "slow": (slow(2, reply(lengths)), {"timeout": 0.2, "attempts": 2}, r"attempts: 2: 1\. no answer within 0.2 s"),
    "drips": (drip, {"timeout": 0.3, "attempts": 1}, "the answer came too slowly"),
    "refused": (reply({"error": "who?"}, 403), {}, "answered HTTP 403 .*who.*`key`"),
    "not_found": (reply({}, 404), {}, "answered HTTP 404"),
    "moved": (reply({}, 307, Location="http://elsewhere/"), {}, "redirects to http://elsewhere/"),
    "no_json": (reply(b"<html>hello</html>"), {}, "answered with no JSON: '<html>hello</html>'"),
    "wrong_json": (reply([1, 2, 3]), {}, 'has no list "scores"'),
    "no_list": (reply({"scores": "high"}), {}, 'has no list "scores"'),
    "too_few": (reply({"scores": [1.0]}), {}, "1 scores came back for 3 responses"),
    "nan": (reply(b'{"scores": [1, NaN, 2]}'), {}, r"gave nan for sample 1 \(prompt '3\+3='"),
    "text": (reply({"scores": [1, 2, "3"]}), {}, "gave '3' for sample 2"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_failure_that_lasts_is_an_error_with_its_reason_and_never_a_score(fault, rollouts):
    act, options, said = LASTING[fault]
    started = time.monotonic()
    with server(act) as script, pytest.raises(RewardError, match=f"reward remote.*{said}"):
        source(script, **options).score(rollouts)
    assert time.monotonic() - started < 3
    expected = options.get("attempts", 4) if "attempts: " in said or fault == "drips" else 1
    assert len(script.bodies) == expected, "what will not pass is asked once"


def test_the_deadline_of_all_requests_holds(rollouts):
    started = time.monotonic()
    with server(slow(1.5, reply(lengths))) as script, pytest.raises(RewardError, match=r"deadline|no answer within"):
        source(script, deadline=0.4, batch_size=1, concurrency=1).score(rollouts)
    assert time.monotonic() - started < 2.5
    with server(reply({}, 503)) as script, pytest.raises(RewardError, match=r"then the deadline of 0\.5 s came"):
        source(script, deadline=0.5, pause=10).score(rollouts)


def test_one_failed_batch_stops_the_others(rollouts):
    many = [replace(rollouts[0], response_text="x" * n) for n in range(50)]
    with server(reply({}, 400), slow(0.02, reply(lengths))) as script:
        with pytest.raises(RewardError, match="HTTP 400"):
            source(script, batch_size=1, concurrency=2).score(many)
        time.sleep(1.0)
        assert len(script.bodies) < 15


def test_nobody_at_the_address_is_told_when_the_source_is_made():
    address = dead_address()
    with pytest.raises(RewardError, match=f"reward remote: GET {address}/health failed: .*refused"):
        UrlReward(UrlConfig(address=address), "remote")
    with server(health=reply({}, 500)) as script, pytest.raises(RewardError, match="/health failed: HTTP 500"):
        source(script)


@pytest.mark.parametrize("health", ["ok", ["ok"], None, {}, {"max_batch": "8", "needs_key": "no"}, {"max_batch": 0}])
def test_health_may_be_any_json(health, rollouts):
    with server(reply(lengths), health=reply(health)) as script:
        assert source(script).score(rollouts) == [1.0, 4.0, 1.0]


def test_a_server_that_is_killed_between_two_batches(rollouts):
    with server(reply(lengths)) as script:
        remote = source(script, attempts=2)
        remote.score(rollouts)
    with pytest.raises(RewardError, match=r"attempts: 2: 1\. .*refused; 2\. .*refused"):
        remote.score(rollouts)


def test_the_key_is_sent_and_never_shown(rollouts, monkeypatch):
    monkeypatch.setenv("REWARD_KEY", "s3cret-key")
    with server(reply(lengths), reply(lambda body: {"you sent": "s3cret-key"}, 401)) as script:
        remote = source(script, key="REWARD_KEY")
        remote.score(rollouts)
        assert script.headers[0]["Authorization"] == "Bearer s3cret-key"
        with pytest.raises(RewardError, match=r"HTTP 401 .*\*\*\*.*it refuses the key") as caught:
            remote.score(rollouts)
    assert "s3cret" not in str(caught.value)
    monkeypatch.delenv("REWARD_KEY")
    with pytest.raises(ConfigError, match=r"environment variable REWARD_KEY .* is not set"):
        UrlReward(UrlConfig(address="http://127.0.0.1:1", key="REWARD_KEY"), "remote")


def test_columns_that_are_no_json(rollouts):
    for bad in (object(), float("nan")):
        with server(reply(lengths)) as script, pytest.raises(RewardError, match="cannot be written as JSON"):
            source(script).score([replace(rollouts[0], columns={"bad": bad})])
        assert script.bodies == []


def test_the_run_s_random_numbers_do_not_move_with_the_network(rollouts):
    import random

    random.seed(3)
    before = random.getstate()
    with server(hang_up, reply(lengths)) as script:
        source(script).score(rollouts)
    assert random.getstate() == before
