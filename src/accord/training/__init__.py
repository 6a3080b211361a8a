"""The loop, and what it needs: optimiser, state, metrics, sinks, console."""
