"""`accord report`: make a run's report again."""

from __future__ import annotations

import argparse

from accord.cli.paths import user_path


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    parser = argparse.ArgumentParser(
        prog="accord report", description="Write report.html of a run directory (also of one that still runs)."
    )
    parser.add_argument("run", type=user_path, help="run directory, such as runs/ppo")
    options = parser.parse_args(words)
    from accord.report import write_report

    print(write_report(options.run))
    return 0
