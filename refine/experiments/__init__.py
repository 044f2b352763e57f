"""The paper's tables, and what a model costs."""
