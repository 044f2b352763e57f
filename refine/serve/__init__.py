"""The web page of `refine serve`."""
