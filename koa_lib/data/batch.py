"""Many files at once: on two cores, with a progress bar, and no bad file stops the others."""

from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from koa_lib.errors import StudyError


def attempt(function, item):
    """The result of a function, or the StudyError that it raised."""
    try:
        return function(item)
    except StudyError as error:
        return error


def attempt_all(function, items, label):
    """`attempt` for each item, in their order; the bar shows on a terminal only.

    Parameters
    ----------
    function : callable
        Called with one item, from two threads.
    items : sequence
    label : str
        What the bar says.

    Returns
    -------
    list of results and StudyErrors
    """
    with ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(lambda item: attempt(function, item), items)
        return list(tqdm(outcomes, total=len(items), desc=label, unit="file", disable=None))
