"""Results as images: overlays, sheets, explanations."""
