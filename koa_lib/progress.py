"""What the library tells while it works: plain lines for a person at a notebook,
events for who runs it by `make`."""

import json
import os
import sys

MARK = "\x1e"  # begins an event, as in JSON text sequences (RFC 7464)
WATCHED = "KOA_STEP"  # set where a notebook is executed by `koa notebook`


def tell(text, due=True, **event):
    """Tell what happened.

    Parameters
    ----------
    text : str
        One line for people.
    due : bool
        Whether a person at a notebook should see it; who watches a run hears everything.
    event : JSON-able
        The same for `terminal.Watch`; `event` names the kind.
    """
    if os.environ.get(WATCHED):
        text = MARK + json.dumps({"text": text, **event})
    elif not due:
        return
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def epoch(label, number, epochs, metrics, left, due=True):
    """Tell of a finished epoch.

    Parameters
    ----------
    label : str
        Which training.
    metrics : dict of str to float
    left : float
        Seconds until the training ends.
    due : bool
        See `tell`.
    """
    measured = in_words(metrics)
    tell(f"{label} epoch {number}/{epochs}: {measured}; {duration(left)} left", due, event="epoch",
         label=label, metrics=metrics)


def in_words(metrics):
    """Names and values with three decimals."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def duration(seconds):
    """A time in words: 7 s, 2 min 50 s, 1 h 12 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if 0.05 <= seconds else "0 s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def without_events(notebook):
    """An executed notebook (changed in place) without the events among its outputs."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stdout":
                lines = "".join(output.text).split("\n")  # not splitlines, for which the mark ends a line
                output.text = "\n".join(line for line in lines if not line.startswith(MARK))
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs
                            if output.get("name") != "stdout" or output.text]
    return notebook
