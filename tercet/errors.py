"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave: one line saying what, where, and what to do.

    The command line prints it and exits with status 2; from Python it is an ordinary exception.
    """
