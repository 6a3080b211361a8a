"""`accord serve-reward` as a process: the ready line, scores, the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accord.cli import main
from accord.config import UrlConfig
from accord.rewards import UrlReward
from accord.types import Rollout


def said(text: str) -> Rollout:
    return Rollout((1,), (2,), (0.0,), "stop", "p", text)


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path):
    (tmp_path / "rewards.py").write_text("def length(prompts, responses):\n    return [len(r) for r in responses]\n")
    words = [
        "--reward",
        "rewards.py:length",
        "--reward",
        "{regex: good, weight: 10}",
        "--port",
        "0",
        "--log-every",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "accord", "serve-reward", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        address = re.search(r"^ready: length, regex at (http://127.0.0.1:\d+); use it: --reward (.+)$", ready)
        assert address and address[1] == address[2], ready
        assert UrlReward(UrlConfig(address=address[1]), "r").score([said("good"), said("bad")]) == [14.0, 3.0]
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in error
    assert "1 requests, 0 refused or failed, 2 responses scored" in out
    assert out.splitlines()[-1] == "stopped after 1 requests, 2 responses scored"


@pytest.mark.parametrize(
    ("words", "said_"),
    [
        (["--reward", "none.py:f"], "none.py does not exist"),
        (["--reward", "{length: 5}"], "a server gets texts: give it `unit: words`"),
        (["--reward", "{model: some/model, process: min}"], "a process reward model reads the steps"),
        (["--reward", "rewards.py:by_token"], "reward by_token reads `response_ids`, the policy's tokens"),
        (["--reward", "{model: some/model, offload: true}"], "a server has no policy: leave it out"),
        (["--reward", "{lenth: 5}"], "unknown key `reward.0.lenth`: did you mean `length`?"),
        (["--reward", "{regex: a}", "--key", "NO_SUCH_KEY"], "environment variable NO_SUCH_KEY (--key) is not set"),
        (["--reward", "{regex: a}", "--max-batch", "0"], "--max-batch must be 1 or more"),
        (["--reward", "{regex: a}", "--port", "70000"], "--port 70000"),
        (["--reward", "{regex: a}", "--device", "cuda:77"], "cuda:77"),
    ],
)
def test_what_cannot_be_served(words, said_, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text("def by_token(prompts, responses, response_ids=(), **columns):\n    return [0.0]\n")
    assert main(["serve-reward", "--port", "70000", *words]) == 2  # a port that nothing could be served at
    assert said_ in capsys.readouterr().err
