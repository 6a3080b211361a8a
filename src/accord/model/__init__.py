"""Models: loading, packed forward, heads, adapters, and roles on one base."""
