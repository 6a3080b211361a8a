"""Sampling responses from the policy, and collecting them with their scores."""
