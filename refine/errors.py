"""The error that a user can fix."""


class RefineError(Exception):
    """Bad input: the message names the file, the field and the fix.

    The command line prints the message alone and exits with 1; library callers may catch it.
    Programming errors stay `ValueError`/`TypeError`/`AssertionError`, with their traceback.
    """


class WriteError(RefineError):
    """A file cannot be written: the disk is full, read-only or forbidden, so the next file would fail too."""


def missing_extra(what: str, extra: str) -> RefineError:
    """Error for an optional dependency that is not installed.

    Args:
        what: subject of the sentence, with what it needs ("the page needs Gradio").
        extra: name of the extra in pyproject.toml that brings it.
    """
    return RefineError(f"{what}; install it in the checkout of refine: pip install -e '.[{extra}]'")
