"""The one exception of the library that is meant for people, what an unfinished run is told, and text that
is safe to print."""

GOES_ON = "Finished work is kept: the same command goes on from there."


class StudyError(Exception):
    """A mistake in the input: says what is wrong, where, and what to do.

    Command lines print its message without a traceback and exit with 1.
    """


def printable(found):
    """Text of a file or its name as a terminal may show it: what is no printable character, such as a
    command to the terminal, becomes '?'.

    Parameters
    ----------
    found : str, or a list or dict of such, as in JSON
        Values of other types stay as they are.
    """
    if isinstance(found, dict):
        return {key: printable(value) for key, value in found.items()}
    if isinstance(found, list):
        return [printable(value) for value in found]
    return (
        "".join(letter if letter.isprintable() else "?" for letter in found)
        if isinstance(found, str)
        else found
    )
