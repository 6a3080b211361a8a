"""`accord chat` in a pipe and in a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accord.cli import main

WORDS = ["--chat-template", "transcript", "--max-new-tokens", "5"]


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_conversation_in_a_pipe(base, tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "chat.jsonl"
    say(
        monkeypatch,
        "the film",
        "",
        "a cast\\",
        "was odd",
        f"/save {file}",
        f"/save {file}",
        "/save",
        "/zz",
        "/quit",
        "never",
    )
    assert main(["chat", str(base), *WORDS, "--system", "be kind"]) == 0
    out = capsys.readouterr().out
    turns = json.loads(file.read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[3]["content"] == "a cast\nwas odd" and turns[2]["content"] in out and turns[4]["content"] in out
    assert f"(saved: {file})" in out and f"(not saved: File exists: {file})" in out and "(name the file" in out
    assert "no command /zz" in out and "/reset" in out


def test_saved_conversations_are_rows_for_sft(base, tmp_path: Path, monkeypatch):
    say(monkeypatch, "the film", f"/save {tmp_path}/chat.jsonl")
    assert main(["chat", str(base), *WORDS]) == 0
    assert main(["data", "check", f"{tmp_path}/chat.jsonl"]) == 0


def test_reset(base, tmp_path: Path, monkeypatch, capsys):
    say(monkeypatch, "the film", "/reset", f"/save {tmp_path}/chat.jsonl", "/help")
    assert main(["chat", str(base), *WORDS]) == 0
    out = capsys.readouterr().out
    assert "(forgotten)" in out and "(there is no conversation to save)" in out and "Ctrl-C ends an answer" in out
    assert not (tmp_path / "chat.jsonl").exists()


def test_a_turn_that_is_too_long_is_told_and_the_chat_goes_on(base, monkeypatch, capsys):
    say(monkeypatch, "the film was good " * 60, "a cast")
    assert main(["chat", str(base), *WORDS]) == 0
    out = capsys.readouterr().out
    assert "write less" in out and len(out.splitlines()) >= 2


def test_forgotten_turns_are_told(base, monkeypatch, capsys):
    say(monkeypatch, *["the film was good and the end was odd"] * 8)
    assert main(["chat", str(base), "--chat-template", "transcript", "--max-new-tokens", "20"]) == 0
    assert "turns no longer fit into the model's 128 tokens and were forgotten" in capsys.readouterr().out


def test_a_model_that_cannot_chat(base, capsys):
    assert main(["chat", str(base)]) == 1
    assert "--plain" in capsys.readouterr().err


def test_plain(base, monkeypatch, capsys):
    say(monkeypatch, "the film was")
    assert main(["chat", str(base), "--plain", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("words", "said"), [(["--top-p", "2"], "top_p"), (["--max-new-tokens", "0"], "max_new_tokens")]
)
def test_sampling_that_cannot_be(base, words, said, capsys):
    assert main(["chat", str(base), "--plain", *words]) == 2
    assert said in capsys.readouterr().err


PROMPT = b"\r\n> "  # an answer may well hold the sign itself, seldom at the start of a line


def test_control_c_in_a_terminal_ends_the_answer_and_not_the_chat(base):
    """A real terminal: greeting and prompt are shown, Ctrl-C during an answer leads back to the prompt, Ctrl-D leaves."""
    screen, terminal = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "accord", "chat", str(base), "--chat-template", "transcript"]
    slow = ["--max-new-tokens", "100", "--temperature", "1.0"]
    process = subprocess.Popen(
        [*command, *slow], stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    seen = b""

    def read_until(mark: bytes, count: int = 1, seconds: float = 60) -> None:
        nonlocal seen
        deadline = time.monotonic() + seconds
        os.set_blocking(screen, False)
        while seen.count(mark) < count:
            assert time.monotonic() < deadline, f"{mark!r} did not come: {seen!r}"
            try:
                seen += os.read(screen, 4096)
            except BlockingIOError:
                time.sleep(0.01)

    try:
        read_until(PROMPT)
        assert b"/quit leaves" in seen
        os.write(screen, b"the film was\n")
        answered = len(seen) + len(b"the film was\r\n")
        while len(seen) <= answered + 2:  # the answer has begun
            read_until(b"", count=0)
            try:
                seen += os.read(screen, 64)
            except BlockingIOError:
                time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        read_until(PROMPT, count=2)
        assert b"(stopped)" in seen or b" \xe2\x80\xa6" in seen
        os.write(screen, b"a cast\n")
        read_until(PROMPT, count=3)
        process.send_signal(signal.SIGINT)
        read_until(b"Ctrl-D leaves")
        os.write(screen, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(screen)
