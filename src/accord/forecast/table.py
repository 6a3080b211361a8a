"""The forecast for people: verdict first, then a table, then what to change; and the same for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from accord.forecast.advice import Change
from accord.forecast.memory import Forecast

GIB = 2**30
BAR = 6
"""Width of the bars below the sums."""
ORDER = (
    "process",
    "base",
    "checkpoint file",
    "adapters",
    "heads",
    "optimiser",
    "gradients",
    "activations",
    "folded adapter",
    "KV cache",
    "logits",
    "logits tiles",
    "workspace",
    "sum over ranks",
    "fragmentation",
)


def size(count: float) -> str:
    """Bytes in the unit that a person would choose."""
    if count >= 100 * GIB:
        return f"{count / GIB:,.0f} GiB"
    if count >= GIB:
        return f"{count / GIB:.1f} GiB" if count >= 10 * GIB else f"{count / GIB:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def verdict(told: Forecast) -> str:
    """One line: whether it fits, the peak and its phase."""
    device = told.device
    room = f"{device.bytes / GIB:.0f} GiB" if device.bytes % GIB == 0 else size(device.bytes)
    where = (
        room
        if device.name[0].isdigit() and device.count == 1
        else f"{device} ({room}{' each' if device.count > 1 else ''})"
    )
    return f"{'fits' if told.fits else 'does not fit'} in {where}: peak {size(told.peak)} in {told.peak_phase}"


def short(told: Forecast) -> list[str]:
    """A few lines for a dry run: the verdict, and what the peak is made of."""
    sums = _sums(told, told.peak_phase)
    parts = sorted(((what, count) for what, count in sums.items() if count), key=lambda pair: -pair[1])[:5]
    return [verdict(told), "of it " + ", ".join(f"{what} {size(count)}" for what, count in parts)]


def _sums(told: Forecast, phase: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for term in told.phases[phase]:
        sums[term.what] = sums.get(term.what, 0) + term.bytes
    return sums


def render(told: Forecast, changes: Sequence[Change], least: Change | None, console: Console) -> None:
    """Print it all."""
    style = "bold green" if told.fits else "bold red"
    console.print(Text.assemble((told.kind, "bold"), "  ", (verdict(told), style)), soft_wrap=True)
    for name, fact in told.facts.items():
        console.print(Text.assemble((f"  {name:<8}", "dim"), fact), soft_wrap=True)
    work = told.work
    shape = f"{work.update.tokens:,} tokens at once, sequences of up to {work.longest:,}"
    shape += f"; {work.rows} rows of {work.columns:,} in the cache" if work.rows else ""
    console.print(Text.assemble(("  sizes   ", "dim"), shape), soft_wrap=True)
    console.print()
    console.print(_table(told))
    for note in told.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    if told.fits:
        return
    console.print()
    if changes:
        console.print(Text("Changes that make it fit, cheapest first:", style="bold"))
        for number, change in enumerate(changes, 1):
            line = Text.assemble(
                f"  {number}. ", (change.words, "bold cyan"), f"   peak {size(change.peak)}; costs {change.price}"
            )
            console.print(line, soft_wrap=True)
    elif least is not None:
        console.print(Text("No change of the recipe that is known here makes it fit.", style="bold"))
        console.print(f"  The least that was found: {least.words}   peak {size(least.peak)}", soft_wrap=True)


def _table(told: Forecast) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("role", style="dim", no_wrap=True)
    table.add_column("what", no_wrap=True)
    peak = told.peak_phase
    for phase in told.phases:
        table.add_column(phase, justify="right", no_wrap=True, style="bold" if phase == peak else None)
    keys = dict.fromkeys((term.role, term.what) for terms in told.phases.values() for term in terms)
    ranks = {what: number for number, what in enumerate(ORDER)}
    for role, what in sorted(keys, key=lambda key: ranks.get(key[1], len(ORDER))):
        counts = [told.of(phase, what, role) for phase in told.phases]
        if any(counts):
            table.add_row(role, what, *(size(count) if count else "-" for count in counts))
    table.add_section()
    totals = [(phase, told.total(phase)) for phase in told.phases]
    marked = [Text(size(count), style="bold reverse" if phase == peak else "bold") for phase, count in totals]
    table.add_row("", Text("sum", style="bold"), *marked)
    table.add_row("", Text("of device", style="dim"), *(_bar(count, told.device.bytes) for _, count in totals))
    return table


def _bar(count: int, whole: int) -> Text:
    """How much of the device is used."""
    share = count / whole
    full = min(round(share * BAR), BAR)
    style = "red" if share > 1 else "yellow" if share > 0.9 else "green"
    return Text.assemble(("█" * full, style), ("·" * (BAR - full), "dim"), f" {share:4.0%}")


def as_json(told: Forecast, changes: Sequence[Change], least: Change | None) -> dict[str, Any]:
    """For machines; sizes in bytes."""
    device = told.device
    plain: Mapping[str, Any] = {
        "kind": told.kind,
        "device": {"name": device.name, "bytes": device.bytes, "count": device.count},
        "fits": told.fits,
        "peak_bytes": told.peak,
        "peak_phase": told.peak_phase,
        "phases": {
            phase: [{"role": t.role, "what": t.what, "bytes": t.bytes} for t in terms if t.bytes]
            for phase, terms in told.phases.items()
        },
        "tokens": told.work.update.tokens,
        "longest": told.work.longest,
        "notes": list(told.notes),
        "changes": [
            {"options": dict(c.options), "words": c.words, "peak_bytes": c.peak, "costs": c.price} for c in changes
        ],
        "least": None if least is None else {"words": least.words, "peak_bytes": least.peak},
    }
    return dict(plain)
