"""Numerical building blocks: pure functions of tensors, each with its formula and source."""
