"""Networks that predict instances and semantic maps for fusion: those of refine, and others."""
