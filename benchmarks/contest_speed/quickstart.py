"""An untrained model of the quickstart's shape, about 4M parameters, with a tokenizer of the benchmark's own texts.

Run as a process of its own: python -m contest_speed.quickstart JOB.json
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from accord.model.tiny import write_tiny_model


def main() -> None:
    """See the module."""
    job = json.loads(Path(sys.argv[1]).read_text())
    raw = gzip.decompress((Path(job["data"]) / "hh_rlhf_harmless" / "train.jsonl.gz").read_bytes()).decode()
    texts = [json.loads(line)["chosen"] for line in raw.splitlines()]
    write_tiny_model(job["model"], texts, vocab_size=4096, hidden=256, layers=3, heads=4)


if __name__ == "__main__":
    main()
