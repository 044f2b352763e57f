"""From images to results, and measuring them."""
