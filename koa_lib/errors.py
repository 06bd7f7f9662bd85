"""The one exception of the library that is meant for people."""


class StudyError(Exception):
    """A mistake in the input: says what is wrong, where, and what to do.

    Command lines print its message without a traceback and exit with 1.
    """
