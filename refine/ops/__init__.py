"""Functions on plain tensors; they depend on no other part of refine."""
