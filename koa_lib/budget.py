"""What notebooks may take: the budgets of a profile, held against the journal of a run."""

from koa_lib import journal
from koa_lib.progress import duration

GROUPS = {"study": ("00", "07"), "systems": ("08", "12")}  # first and last notebook that share a budget


def spent(settings, lines):
    """Rows (notebooks, seconds when all their steps are built, budget in seconds) of each group with a budget that was executed whole.

    Parameters
    ----------
    settings : Profile
    lines : list of dict
        As from `journal.read`.
    """
    done = sorted({line["notebook"] for line in lines if line["step"] == line["notebook"] and line["notebook"][:2].isdigit()})
    rows = []
    for group, (first, last) in GROUPS.items():
        names, limit = [name for name in done if first <= name[:2] <= last], getattr(settings.budget, group)
        seconds = journal.whole(lines, names)
        if seconds is not None and limit and names[-1][:2] == last:
            rows.append((f"{first}–{last}", seconds, limit))
    return rows


def sentence(rows):
    """What `spent` found, in words; empty for no rows."""
    return "; ".join(f"notebooks {names} take {duration(seconds)} when every step is built, {'within' if seconds <= limit else 'over'} their budget of {duration(limit)}"
                     for names, seconds, limit in rows)
