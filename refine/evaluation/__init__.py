"""PQ, AP, and the files they are computed from."""
