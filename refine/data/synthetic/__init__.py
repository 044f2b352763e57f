"""Procedural scenes with known depth order."""
