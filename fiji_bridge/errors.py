"""The one error that users see."""


class FijiBridgeError(Exception):
    """A mistake that the user can mend.

    Its text is one sentence that says what was wrong, where (the file or option by name), and what to do.
    The command line prints it without a traceback and exits with status 1.
    """
