"""Functions on plain tensors; they import nothing else of ours."""
