"""Mathematical answers, by the real library in its own process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.config import VerifierConfig
from accord.errors import ConfigError, RewardError
from accord.rewards import MathReward, verifier
from accord.types import Rollout

pytest.importorskip("math_verify")


def said(gold: str | None, response: str) -> Rollout:
    return Rollout((1,), (2,), (0.0,), "stop", "p", response, {} if gold is None else {"answer": gold})


@pytest.fixture(scope="module")
def source() -> Iterator[MathReward]:
    yield MathReward(VerifierConfig(type="math", timeout=10), "math")


CASES = [
    ("#### 42", "40 + 2 = 42\n#### 42", 1),
    ("He has 3 * 14 = 42 apples.\n#### 42", "The answer is 42.", 1),
    ("#### 1,234", "That makes 1234.", 1),
    ("1234", "#### 1,234", 1),
    ("12", "We get 13. #### 12", 1),
    ("#### -3", "#### 3", 0),
    ("12", "#### 12\nAll 3 friends are glad.", 1),
    ("72", r"So \boxed{72}", 1),
    ("72", r"\boxed{71}, no: 72", 0),  # the box is the answer
    (r"\frac{1}{2}", "It is $0.5$", 1),
    (r"Hence $\boxed{\frac12}$.", r"\boxed{\frac{2}{4}}", 1),
    ("x^2-1", "$(x-1)(x+1)$", 1),
    ("(1,2)", r"\boxed{(1,2)}", 1),
    ("(1,2)", r"\boxed{(2,1)}", 0),
    ("4", "#### Solution\nWe have x = 4.\nSo the answer is \\boxed{4}.", 1),
    ("#### 72", "#### Step 2: the sum\n48 + 24 = 72. The answer is 72.", 1),
    ("72", "#### 2. The sum\nIt is 72.", 1),
    ("72", "#### Answer\n72", 1),
    ("72", "#### The answer is 72", 1),
    ("72", "#### The answer is 71", 0),
    ("72", "#### So it is 72", 1),
    ("72", "#### **72**", 1),
    ("72", "#### **Answer:** 72", 1),
    ("72", "48 + 24 = 72\n#### I hope that helps!", 1),
    ("72", "We get 71.\n#### 72 apples\nThat is 3 each.", 1),
    ("72", "#### 71\nNo: \\boxed{72}", 1),
    ("72", "#### 72\nNo: \\boxed{71}", 0),
    ("72", "The answer is 72.\n####", 1),
    ("1234", "It costs 3. #### \\boxed{1,234}", 1),
    ("#### 50%", "Of 4: #### 50%", 1),
    ("#### sqrt(3)", "1 + 2 = 3\n#### sqrt(3)", 1),
    ("#### sqrt(3)", "#### 3", 0),
    ("log(2)", "#### log 2", 0),  # is no 2; math-verify reads it neither way
    ("2", "#### log 2", 0),
    ("#### Blue whale", "#### Blue whale", 1),
    ("#### Blue whale", "It weighs much.\n#### Bat", 0),
    ("$18", "She makes $18 a day", 1),
    ("5", "I think it is 6", 0),
    ("5", "no idea", 0),
    ("5", "", 0),
]


@pytest.mark.parametrize(("gold", "response", "score"), CASES)
def test_answers(gold, response, score, source):
    assert source.score([said(gold, response)]) == [float(score)]


def test_a_row_without_an_answer_has_no_score(source):
    assert source.score([said(None, "5"), said("5", "5"), said(None, "")]) == [None, 1.0, None]


def test_an_answer_that_cannot_be_read_is_an_error_of_the_data(source):
    with pytest.raises(RewardError, match=r"no answer can be read from column 'answer' = '\s*' of sample 1"):
        source.score([said("5", "5"), said(" ", "5")])


def test_a_response_that_takes_for_ever_scores_0_in_time_and_is_counted():
    source = MathReward(VerifierConfig(type="math", timeout=1), "math")
    source.score([said("3", "3")])
    started = time.monotonic()
    assert source.score([said("3", r"\boxed{10^{10^{10^{10}}}}"), said("3", "3")]) == [0.0, 1.0]
    assert time.monotonic() - started < 10
    assert source.take_counts() == {"timeout": 1, "crashed": 0} and source.take_counts()["timeout"] == 0


LIMITS = """
import importlib.util, signal, sys, time
spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
signal.signal(signal.SIGPROF, worker._stop)
def spin():
    while True: pass
worker._give(0.2)
time.sleep(0.5)
print("waited", flush=True)
try:
    spin()
except worker._Late:
    print("late", flush=True)
worker._give(0.2)
sum(range(10**12))  # one instruction, which no signal ends
"""


def test_cpu_time_counts_and_not_the_clock():
    file = str(Path(verifier.__file__).with_name("math_worker.py"))
    done = subprocess.run([sys.executable, "-c", LIMITS, file], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.returncode) == (["waited", "late"], -signal.SIGXCPU), done.stderr


def test_a_process_that_its_own_limit_killed_was_late_and_one_without_processor_for_a_while_was_not(monkeypatch):
    monkeypatch.setattr(verifier, "GRACE_SECONDS", 60.0)
    source = MathReward(VerifierConfig(type="math", timeout=0.5), "math")
    source.score([said("3", "3")])
    process = source._worker._process
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (process.pid, signal.SIGCONT)).start()
    assert source.score([said("3", "3")]) == [1.0] and source._worker._process is process
    threading.Timer(0.3, os.kill, (process.pid, signal.SIGXCPU)).start()
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.6, os.kill, (process.pid, signal.SIGCONT)).start()
    assert source.score([said("3", "3")]) == [0.0]
    assert source.take_counts() == {"timeout": 1, "crashed": 0} and process.poll() == -signal.SIGXCPU


def test_a_process_that_died_between_two_batches_is_replaced():
    source = MathReward(VerifierConfig(type="math"), "math")
    assert source.score([said("3", "3")]) == [1.0]
    os.kill(source._worker._process.pid, signal.SIGKILL)
    source._worker._process.wait()
    assert source.score([said("3", "3"), said("3", "4")]) == [1.0, 0.0]
    assert source.take_counts() == {"timeout": 0, "crashed": 0}


def test_a_process_that_hangs_where_no_signal_reaches_is_killed(monkeypatch):
    monkeypatch.setattr("accord.rewards.verifier.GRACE_SECONDS", 0.2)
    source = MathReward(VerifierConfig(type="math", timeout=0.5), "math")
    source.score([said("3", "3")])
    first = source._worker._process
    os.kill(first.pid, signal.SIGSTOP)
    assert source.score([said("3", "3")]) == [0.0]
    assert source.take_counts() == {"timeout": 1, "crashed": 0} and first.poll() is not None
    assert source.score([said("3", "3")]) == [1.0]


def test_a_process_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr("accord.rewards.verifier.sys.executable", "/bin/false")
    with pytest.raises(RewardError, match="the process of math-verify did not start"):
        MathReward(VerifierConfig(type="math"), "math").score([said("3", "3")])


def test_the_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'accord\[verify\]'"):
        MathReward(VerifierConfig(type="math"), "math")
