"""`accord report`."""

from __future__ import annotations

import shutil
from pathlib import Path

from accord.cli import main


def test_writes_the_report_again(finished, tmp_path: Path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert "".join(capsys.readouterr().out.split()) == f"{run}/report.html"
    assert "<html" in (run / "report.html").read_text()


def test_no_run(tmp_path: Path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
