"""The error that a user can mend."""


class RefineError(Exception):
    """Bad input, told so that it can be mended: names the file, the field and what to do.

    The command line prints the message alone and exits with 1; library callers may catch it.
    Programming errors stay `ValueError`/`TypeError`/`AssertionError`, with their traceback.
    """
