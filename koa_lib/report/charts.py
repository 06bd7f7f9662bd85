"""Charts that `plots` has not: the steps of a label shift, and printed beside Wilson's intervals."""

import textwrap

import numpy as np

from koa_lib.errors import StudyError
from koa_lib.report.style import INK, PLAIN_COLOURS, narrow, styled

# The parts of `shift.decomposition` from top to bottom; a change starts at the end of another part.
_PARTS = {"internal accuracy": None, "label shift": "internal accuracy", "expected at the external grade mix": None,
          "rest": "expected at the external grade mix", "external accuracy": None}


@styled
def shift(table):
    """From the internal to the external accuracy: the step that the grade mix explains, and the rest.

    Parameters
    ----------
    table : DataFrame
        part, value, ci_low, ci_high (ratios; NaN where undefined), as from `shift.decomposition`.

    Raises
    ------
    StudyError
        A part is missing.
    """
    rows = table.set_index("part")
    missing = [part for part in _PARTS if part not in rows.index]
    if missing:
        raise StudyError(f"The decomposition has no row '{missing[0]}'. Its parts are: {', '.join(_PARTS)}.")
    figure, axis = narrow(2.7)
    ends = [rows.loc[[part, base] if base else [part], "value"].sum(skipna=False) for part, base in _PARTS.items()]
    for place, (part, base) in enumerate(_PARTS.items()):
        start = rows.loc[base, "value"] if base else 0
        value, low, high = rows.loc[part, ["value", "ci_low", "ci_high"]].astype(float)
        look = {"color": PLAIN_COLOURS[1], "hatch": "///"} if base else {"color": PLAIN_COLOURS[4]}
        axis.barh(place, np.nan_to_num(value), left=np.nan_to_num(start), edgecolor="white", **look)
        _whisker(axis, place, start + value, start + low, start + high, "undefined", color=INK, fmt="none")
        _beside(axis, place, _with_interval(value, low, high, 3, sign="+" if base else ""))
    for place, (end, following) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        if np.isfinite(following):
            axis.plot([end] * 2, [place - 0.4, place + 1.4], color=INK, lw=0.8, ls=":")
    axis.set(xlabel="accuracy (95 % interval); hatched: change", ylim=(4.6, -0.6))
    axis.set_yticks(range(5), [textwrap.fill(part, 20) for part in _PARTS])
    axis.set_xlim(left=0)
    return figure


def _absent(axis, place, text):
    axis.annotate(text, (place, 0.05), xycoords=("data", "axes fraction"), ha="center", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1})


def _whisker(axis, place, value, low, high, absent, color=PLAIN_COLOURS[0], **look):
    if np.isnan(value):
        axis.annotate(absent, (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        return
    reach = np.nan_to_num(np.maximum([[value - low], [high - value]], 0))
    axis.errorbar([value], [place], xerr=reach, color=color, capsize=3, markersize=5, **{"fmt": "o", **look})


def _with_interval(value, low, high, digits, sign=""):
    if np.isnan(value):
        return "–"
    text = f"{value:{sign}.{digits}f}" + (f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]" if np.isfinite([low, high]).all() else "")
    return text.replace("-", "−")


def _beside(axis, place, text):
    axis.annotate(text, (1, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8.5, annotation_clip=False)
