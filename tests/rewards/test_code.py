"""Code of responses in the sandbox: what passes, what fails, what is stopped, and what is our own fault."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accord.config import CodeConfig
from accord.errors import RewardError
from accord.rewards import CodeReward, code
from accord.rewards.code import Outcome, clock_seconds, extract, isolation, run
from accord.types import Rollout


def said(response: str, prompt: str = "p", **columns: object) -> Rollout:
    return Rollout((1,), (2,), (0.0,), "stop", prompt, response, columns)


def outcome(source: str, *tests: str, timeout: float = 5.0, memory_mb: int = 256) -> Outcome:
    limits = {"timeout": timeout, "memory_mb": memory_mb, "file_mb": 1}
    job = {"before": "", "code": source, "joined": False, "tests": list(tests) or ["pass"], **limits}
    return run(job, clock_seconds(timeout))


ADD = "def add(a, b):\n    return a + b"
TESTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(1, -1) == 1", "assert add('a', 'b') == 'ab'"]


def test_the_score_is_the_share_of_tests_that_pass():
    rollouts = [
        said(ADD, test=TESTS),
        said("def add(a, b): return 0", test=TESTS),
        said(ADD, test="assert add(2, 2) == 4"),
    ]
    source = CodeReward(CodeConfig(tests="test"), "code")
    assert source.score([*rollouts, said("x")]) == [0.75, 0.25, 1.0, None]
    assert source.take_counts() == {"failed": 2, "crashed": 0, "timeout": 0}
    assert CodeReward(CodeConfig(tests="test", all_or_nothing=True), "code").score(rollouts) == [0.0, 0.0, 1.0]


HEAD = 'from typing import List\n\n\ndef largest(numbers: List[int]) -> int:\n    """The largest of the numbers."""\n'
CHECK = "def check(candidate):\n    assert candidate([1, 3, 2]) == 3\n    assert candidate([-1]) == -1\n"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("    return max(numbers)\n", 1.0),
        ("    return numbers[0]\n", 0.0),
        ("return max(numbers)", 0.0),  # not indented: no body of the function
        (f"Here it is:\n```python\n{HEAD}    return sorted(numbers)[-1]\n```\nDone.", 1.0),
        ("```python\ndef largest(numbers):\n    return max(numbers)", 1.0),  # cut at the limit
        ("", 0.0),
    ],
)
def test_problems_in_the_shape_of_humaneval(response, score):
    source = CodeReward(CodeConfig(tests="test", before="prompt", after="check({entry_point})"), "code")
    assert source.score([said(response, HEAD, test=CHECK, entry_point="largest")]) == [score]


def test_code_that_comes_before():
    source = CodeReward(CodeConfig(tests="tests", before="setup"), "code")
    assert source.score([said("x = base + 1", tests=["assert x == 3"], setup="base = 2")]) == [1.0]


def test_the_code_of_a_response():
    assert extract("x = 1") == "x = 1"
    assert extract("First\n```\na\n```\nthen\n``` python\nb\n```") == "b\n"
    assert extract("```bash\nls\n```\n```py\nx\n```\n```text\n1\n```") == "x\n"
    assert extract("```python\nf = 1\n```\nIt prints\n```\n120\n```") == "f = 1\n"
    assert extract("```\nfirst\n```\n```Python\na\n```\n```python3\nb\n```\n```\nlast\n```") == "b\n"
    assert extract("```bash\nls\n```\n```\na\n```\n```\nb\n```\n```text\nc\n```") == "b\n"
    assert extract("```bash\nls\n```") == "```bash\nls\n```"


FAILS = {
    "raises": ("raise KeyError('x')", "KeyError: 'x'"),
    "no_python": ("def f(: pass", "SyntaxError"),
    "exits": ("import sys; sys.exit(0)", "SystemExit"),
    "recursion": ("def f(): return f()\nf()", "RecursionError"),
    "memory": ("x = [0] * 10**9", "MemoryError"),
    "network": ("import socket; socket.create_connection(('127.0.0.1', 9))", "PermissionError"),
    "shell": ("import os; os.system('true')", "PermissionError"),
    "process": ("import subprocess; subprocess.run(['true'])", "PermissionError"),
    "fork": ("import os; os.fork()", "PermissionError"),
    "kill": ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
    "library": ("import ctypes", "PermissionError"),
    "large_file": ("f = open('a', 'w'); f.write('x' * 10**7); f.flush()", "File too large"),
    "packages": ("import numpy", "ModuleNotFoundError"),
    "limits": ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "(PermissionError|ValueError)"),
}


@pytest.mark.parametrize("case", FAILS)
def test_code_that_fails_or_may_not_scores_0(case):
    source, said = FAILS[case]
    result = outcome(source)
    assert (result.kind, result.passed) == ("failed", 0)
    assert re.search(said, result.error), result.error


def test_nothing_outside_its_folder_is_changed(tmp_path: Path):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    tmp_path.chmod(0o777)
    for source in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.open({str(kept)!r}, os.O_WRONLY)",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import pathlib; pathlib.Path({str(kept)!r}).unlink()",
        f"import os; os.rename('here', {str(kept)!r})",
        f"import os; os.symlink({str(kept)!r}, 'link'); open('link', 'w')",
    ):
        result = outcome(source)
        assert result.kind == "failed", source
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"] and kept.read_text() == "mine"
    assert outcome("f = open('own', 'w'); f.write('x'); f.close(); assert open('own').read() == 'x'").kind == "passed"


def test_the_environment_is_empty_and_so_is_the_input(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    source = "import os, sys\nassert not set(os.environ) - {'LC_CTYPE'}\nassert sys.stdin.read() == '' and sys.argv[1:] != ['x']"
    assert outcome(source).kind == "passed"


def test_output_goes_nowhere_and_holds_nothing_up():
    assert (
        outcome("import sys\nfor s in (sys.stdout, sys.stderr):\n    print('x' * 10**7, file=s, flush=True)").kind
        == "passed"
    )


TOO_LONG = {
    "python": ("while True: pass", r"more than 0\.25 s of CPU time"),
    "c": ("x = 10 ** 10 ** 10", r"more than 0\.25 s of CPU time"),
    "deaf": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        r"more than 0\.25 s of CPU time",
    ),
    "sleep": ("import time; time.sleep(60)", r"longer than 3 s on the clock"),
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_code_that_takes_too_long_is_killed_and_counted(case, monkeypatch):
    source, why = TOO_LONG[case]
    if case != "sleep":  # so that a busy machine cannot make the clock the first
        monkeypatch.setattr(code, "CLOCK_MORE", 60.0)
    result = outcome(source, timeout=0.25)
    assert (result.kind, result.passed) == ("timeout", 0) and re.search(why, result.error), result.error
    rewards = CodeReward(CodeConfig(tests="test", timeout=0.25), "code")
    assert rewards.score([said(source, test="pass"), said("x = 1", test="pass")]) == [0.0, 1.0]
    assert rewards.take_counts() == {"failed": 0, "crashed": 0, "timeout": 1}


def test_what_a_busy_machine_takes_away_is_not_the_code_s_time():
    """Half a second of CPU time in more than a second on the clock."""
    slow = "import time\nend = time.monotonic() + 1.2\nwhile time.monotonic() < end: time.sleep(0.01)\nx = 1"
    assert outcome(slow, "assert x == 1", timeout=1.0).kind == "passed"


def test_a_kill_before_the_time_is_used_up_is_a_crash(monkeypatch):
    """As by the kernel where memory is short."""
    monkeypatch.setattr(code, "NEARLY", 100.0)
    assert outcome("while True: pass", timeout=1.0).kind == "crashed"


def test_an_early_end_is_no_success():
    """`os._exit(0)`, results written by hand, or a closed report: none is a test that passed."""
    for source in (
        "import os; os._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[null]\\n')\n    except OSError: pass",
        "import os\nfor fd in range(3, 64):\n    try: os.close(fd)\n    except OSError: pass",
    ):
        result = outcome(source)
        assert (result.kind, result.passed) == ("crashed", 0), source


def test_many_tests_that_fail_are_told_in_few_words():
    result = outcome("x = 1", *["assert False, 'a' * 300"] * 6000, "assert x == 1", timeout=30.0)
    assert (result.kind, result.passed, result.tests) == ("failed", 1, 6001)
    assert result.error.startswith("AssertionError: aaa") and len(result.error) == 200


def test_the_first_error_is_told():
    result = outcome("x = 1", "assert x == 1", "assert x == 2, 'second'", "assert x == 3, 'third'")
    assert (result.passed, result.error) == (1, "AssertionError: second")


@pytest.mark.parametrize(
    "report", ["", "[]", '{"passed": 99, "error": ""}', '{"passed": -1, "error": ""}', '{"error": ""}']
)
def test_a_report_that_makes_no_sense_is_a_crash(report):
    """Who looks for the secret finds it: this is no boundary. But a report of the wrong shape is told for what it is."""
    source = (
        "import os, sys\nframe = sys._getframe()\n"
        "while 'secret' not in frame.f_locals: frame = frame.f_back\n"
        f"os.write(frame.f_locals['report'], (frame.f_locals['secret'] + {report!r} + '\\n').encode())"
    )
    assert outcome(source) == Outcome("crashed", 0, 1, "the report was tampered with")


def test_tests_do_not_see_each_other_s_names():
    assert outcome("x = 1", "x = 2", "assert x == 1").kind == "passed"


@pytest.mark.skipif(not isolation(), reason="unshare does not work here")
def test_there_is_no_network_even_around_the_guard(monkeypatch):
    """The guard inside is bypassed here; the namespace still has no way out."""
    import socket
    import subprocess
    import sys

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        attempt = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert subprocess.run([sys.executable, "-c", attempt], timeout=20, check=False).returncode == 0
        alone = subprocess.run(
            [*isolation(), sys.executable, "-c", attempt], timeout=20, capture_output=True, check=False
        )
        assert alone.returncode != 0 and b"Error" in alone.stderr


def test_it_also_runs_where_there_is_no_unshare(monkeypatch):
    isolation.cache_clear()
    monkeypatch.setattr(code.shutil, "which", lambda name: None)
    try:
        assert isolation() == ()
        assert outcome("x = 1", "assert x == 1").kind == "passed"
        assert outcome("while True: pass", timeout=0.5).kind == "timeout"
        assert "socket" in outcome("import socket; socket.socket()").error
    finally:
        isolation.cache_clear()


@pytest.mark.parametrize("workers", [2, None])
def test_workers_are_bounded(workers, monkeypatch):
    import threading

    busy, most, lock, real = 0, 0, threading.Lock(), code.run

    def counted(job, timeout):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        try:
            return real(job, timeout)
        finally:
            with lock:
                busy -= 1

    monkeypatch.setattr(code, "default_workers", lambda: 2)
    source = CodeReward(CodeConfig(tests="test", workers=workers), "code")
    monkeypatch.setattr(code, "run", counted)
    assert source.score([said("x = 1", test="pass")] * 6) == [1.0] * 6
    assert most == 2


def test_a_sandbox_that_does_not_start_is_an_error_and_no_zero(monkeypatch):
    source = CodeReward(CodeConfig(tests="test"), "code")
    with monkeypatch.context() as patch:
        patch.setattr(code.sys, "executable", "/bin/false")
        with pytest.raises(RewardError, match=r"reward code: the sandbox did not start"):
            source.score([said("x = 1", test="pass")])
        with pytest.raises(RewardError, match=r"reward code: the sandbox did not start"):
            CodeReward(CodeConfig(tests="test"), "code")
    isolation.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(code.shutil, "which", lambda name: None)
        patch.setattr(code.sys, "executable", "/no/python")
        with pytest.raises(RewardError, match="no process could be started"):
            source.score([said("x = 1", test="pass")])
    isolation.cache_clear()


@pytest.mark.parametrize(
    ("columns", "said_"),
    [
        ({"test": []}, r"column 'test' of sample 0 .* tests are a text or a list of texts"),
        ({"test": 5}, r"column 'test' of sample 0 .* holds 5; tests are a text or a list of texts"),
        ({"test": {"a": "pass"}}, "tests are a text or a list of texts"),
        ({"test": b"pass"}, "tests are a text or a list of texts"),
        ({"test": [3]}, "tests are a text or a list of texts"),
        ({"test": "pass"}, "has tests and no column 'entry_point'"),
    ],
)
def test_rows_that_cannot_be_tested(columns, said_):
    source = CodeReward(CodeConfig(tests="test", after="check({entry_point})"), "code")
    with pytest.raises(RewardError, match=said_):
        source.score([said("x", **columns)])


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    for source in ("open('a', 'w').write('x')", "while True: pass", "import os; os._exit(1)"):
        outcome(source, timeout=0.5)
    assert list(tmp_path.iterdir()) == []
    assert before in (0, len(list(descriptors.iterdir())))
