"""One self-contained HTML page a run: what happened, in curves and in samples, and how to go on."""

from accord.report.page import write_report

__all__ = ["write_report"]
