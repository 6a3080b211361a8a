"""The command line before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from accord.cli import COMMANDS, GROUPS, main, overview

HEAVY = ("torch", "pydantic", "transformers", "peft", "datasets", "numpy", "rich", "yaml")


def test_help_imports_nothing_heavy():
    code = f"import sys; from accord.cli import main; main(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.startswith("accord: teach language models")


def test_help_takes_less_than_half_a_second():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "accord", "--help"], capture_output=True, timeout=60, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


def test_overview_names_every_command_once():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    lines = [line.split()[0] for line in overview().splitlines() if line.startswith("  ")]
    assert sorted(lines) == sorted(COMMANDS)


@pytest.mark.parametrize("words", [[], ["-h"], ["help"], ["--help"]])
def test_all_ways_to_ask_for_help(words, capsys):
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == overview()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    try:
        code = main([command, "--help"])
    except SystemExit as end:  # argparse's way
        code = end.code
    out, error = capsys.readouterr()
    assert code == 0 and error == ""
    assert f"accord {command}" in out


def test_help_of_a_recipe_has_every_section_and_default(capsys):
    assert main(["ppo", "--help"]) == 0
    out = capsys.readouterr().out
    for line in ("--train.iterations INT  [100]", "--algorithm.kl.coef NUMBER  [0.2]", "--model.path TEXT  [required]"):
        assert line in out
    assert "--algorithm.kl.estimator k1|k2|k3|abs|mse|full  [k1]" in out and "--resume" in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("accord 0.")


@pytest.mark.parametrize(
    ("word", "hint"), [("pppo", "did you mean `ppo`?"), ("rewrd", "did you mean `reward`?"), ("zzz", "commands: ")]
)
def test_unknown_command(word, hint, capsys):
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert f"no command '{word}'" in error and hint in error


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    def broken(command, words):
        raise ZeroDivisionError

    monkeypatch.setattr("accord.cli.report.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report", "x"])


def test_interrupt(monkeypatch, capsys):
    def interrupted(command, words):
        raise KeyboardInterrupt

    monkeypatch.setattr("accord.cli.report.run", interrupted)
    assert main(["report", "x"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_dash_in_a_command_is_an_underscore(capsys):
    assert main(["online-dpo", "--help"]) == 0
    assert "online_dpo" in capsys.readouterr().out
