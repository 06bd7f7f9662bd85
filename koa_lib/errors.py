"""The one exception of the library that is meant for people, and what an unfinished run is told."""

GOES_ON = "Finished work is kept: the same command goes on from there."


class StudyError(Exception):
    """A mistake in the input: says what is wrong, where, and what to do.

    Command lines print its message without a traceback and exit with 1.
    """
