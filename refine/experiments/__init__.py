"""Reproduction of the paper's tables, and cost of models."""
