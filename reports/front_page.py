"""The front page: the verdict in three sentences, and the scorecard from its gist to its last row."""

import csv
import math
import re
from collections import Counter

from markupsafe import Markup

from koa_lib.paper import scorecard
from koa_lib.paper.published import SYSTEMS
from koa_lib.paper.scorecard import FOUND, MODEL_RULE, TIMED, VERDICTS, WITHOUT_MODEL
from koa_lib.report import labels
from reports import provenance
from reports.places import title

__all__ = ["headlines", "papers", "scores", "sources", "verdict", "verdicts"]

# The rows that carry the paper's conclusions, by item, row and metric.
HEADLINES = (("table_2", "test", "accuracy"), ("table_2", "test", "macro_f1"), ("table_2", "train", "accuracy"), ("text", "macro", "auc"),
             ("text", "discussion", "train_test_drop"), ("text", "mcnemar", "p_value"))
SOURCES = {"jpm2026": "The main paper", "arithmetic": "Arithmetic of its printed numbers"}
METRICS = {"auc": "AUC", "macro_f1": "macro-F1", "f1": "F1", "p_value": "p value", "training_minutes": "training time", "inference_ms": "time per picture",
           "train_test_drop": "train minus external accuracy", "train_images": "training pictures", "domain_drop_of_others_low": "smallest drop of others", "domain_drop_of_others_high": "largest drop of others",
           "external_images": "external pictures"}
UNITS = {"percent": "%", "milliseconds": "ms"}
ROWS = {("text", "macro"): "Macro average", ("text", "mcnemar"): "McNemar's test", ("text", "data"): "Data", ("text", "runtime"): "Run time",
        ("text", "discussion"): "Discussion", ("text", "conclusion"): "Conclusion"}
OF_A_SHARE = ("quality measures of failures against successes",)  # claims whose interval is that of a proportion
MINUS = "\N{MINUS SIGN}"


def scores(run_dir):
    """The rows of `tables/scorecard.csv`, ready to be read; empty when there is none.

    Returns
    -------
    list of dict
        The file's columns, and: key, model (needs a trained model), label, what (metric with unit), interval, beside (group bootstrap of the shown fold); numbers as short texts.
    """
    path = run_dir / "tables" / "scorecard.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [_readable(row) for row in csv.DictReader(file)]


def _readable(row):
    decimals = {"percent": 2, "points": 2, "ratio": 3}.get(row["unit"])
    bounds = [_short(row[name], decimals) for name in ("ci_low", "ci_high")]
    unit = UNITS.get(row["unit"], row["unit"] if row["unit"] in ("points", "minutes") else "")
    metric = METRICS.get(row["metric"], row["metric"].replace("_", " "))
    return row | {
        "key": (row["item"], row["row"], row["metric"]),
        "model": row.get("rule") not in WITHOUT_MODEL,
        "label": _label(row),
        "what": ",\N{NO-BREAK SPACE}".join(part for part in (metric, unit) if part),
        "interval": f"{' to '.join(bounds)}, {_kind(row)}" if all(bounds) else "",
        "beside": " to ".join(_short(row[name], decimals) for name in ("boot_low", "boot_high")) if row.get("boot_low") else "",
        "published": " ".join(filter(None, (row.get("relation", ""), _short(row["published"])))),
        "ours": _short(row["ours"], decimals),
    }


def _kind(row):
    # What an interval is: the rules of the scorecard and the claims say it, the file has one pair of columns for all.
    if row.get("rule") == TIMED:
        return "middle 95 % of repeats"
    if row.get("rule") in OF_A_SHARE:
        return "Wilson"
    over_runs = row.get("rule", "").startswith(MODEL_RULE.split("{")[0]) or row.get("rule") == "train accuracy minus external accuracy"
    return "t over runs" if over_runs else "group bootstrap"


def _label(row):
    item, name = row["item"], row["row"]
    if (item, name) in ROWS:
        return ROWS[item, name]
    if item in ("text", "audit", "abstract"):
        return name[:1].upper() + name[1:]
    place = item.replace("_", " ").capitalize()
    return f"{place}, {f'grade {name}' if name.isdigit() else name}" if name else place


def _short(text, decimals=None):
    # With decimals all of them are shown, so that a column can be compared; without, as few as are needed.
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return ""
    if 0 < value < 0.0005:
        return "<0.001"
    if decimals is not None:
        return f"{value:,.{decimals}f}".replace("-", MINUS)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.3f}".rstrip("0").rstrip(".")


def headlines(rows):
    """The rows of the main paper that carry its conclusions."""
    return [row for key in HEADLINES for row in rows if row["source"] == "jpm2026" and row["key"] == key]


def verdicts(rows):
    """Counts of verdicts: {"columns": verdicts that occur, "rows": [(what is counted, counts)], "later": readings whose rules were chosen or changed after first results}."""
    columns = [verdict for verdict in dict.fromkeys((*VERDICTS, *FOUND)) if any(row["verdict"] == verdict for row in rows)]
    kinds = (("Main paper: results and claims that need a trained model", lambda row: row["model"] and row["source"] == "jpm2026"),
             ("Other systems: results and claims that need a trained model", lambda row: row["model"] and row["source"] != "jpm2026"),
             ("Counts, repeated and cited numbers, timings, arithmetic", lambda row: not row["model"]))
    counted = [(name, Counter(row["verdict"] for row in rows if chosen(row))) for name, chosen in kinds]
    return {"columns": columns, "rows": [(name, [counts[column] for column in columns]) for name, counts in counted if counts], "later": scorecard.LATER}


def papers(rows, notebooks, found, readings):
    """The other papers, one row each, in the order of their notebooks.

    Parameters
    ----------
    rows : list of dict
        As from `scores`.
    notebooks : dict of str to notebook
        The executed ones.
    found : dict
        As from `places.exhibits`.
    readings : list of dict
        As from `checklists.readings`; those of a paper name its system, of several papers all of them.

    Returns
    -------
    list of dict
        system, reference (key of references.bib), notebook, heading and page (None where it has not been run), exhibits ('Tables' or 'Figures', each with
        numbers and pages), readings (their numbers), tally (verdicts of its rows that need a trained model).
    """
    return [{"system": name, "reference": system.reference, "notebook": system.notebook, "readings": [row["number"] for row in readings if name in row.get("system", "").split(", ")],
             "heading": title(notebooks[system.notebook], system.notebook) if system.notebook in notebooks else "",
             "page": f"nb/{system.notebook}.html" if system.notebook in notebooks else None,
             "exhibits": _numbers(place for place in found.values() if place["notebook"] == system.notebook),
             "tally": tally([row for row in rows if row["model"] and row["source"] == name])} for name, system in SYSTEMS.items()]


def _numbers(exhibits):
    named = [(*place["name"].split(), place["page"]) for place in exhibits]
    kinds = ((f"{kind}s", [(number, page) for what, number, page in named if what == kind]) for kind in ("Table", "Figure"))
    return [(kind, places) for kind, places in kinds if places]


def sources(rows):
    """The whole scorecard in parts that can be unfolded: (anchor, name, word for our value, tally, rows)."""
    parts = []
    for model in (True, False):
        chosen = [row for row in rows if row["model"] == model]
        for source in dict.fromkeys(row["source"] for row in chosen):
            members = [row for row in chosen if row["source"] == source]
            name = SOURCES.get(source, source) + ("" if source == "arithmetic" else ", rows that need a trained model" if model else ", rows that need none")
            anchor = f"scorecard-{source}-{'model' if model else 'found'}".lower()
            parts.append((anchor, name, "Ours" if model else "Found", tally(members), members))
    return parts


def tally(rows):
    """'3 replicated, 1 not run' for some rows."""
    counts = Counter(row["verdict"] for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in dict.fromkeys((*VERDICTS, *FOUND)) if verdict in counts)


def verdict(run, rows, measured, items):
    """Three sentences made from the run's numbers.

    Parameters
    ----------
    run : Run
    rows : list of dict
        As from `scores`.
    measured : list of dict
        As from `cards.measured`: the main model on each part.
    items : list of dict
        As from `places.items`.
    """
    ours = [row for row in rows if row["model"] and row["source"] == "jpm2026"]
    others = _others([row for row in rows if row["model"] and row["source"] != "jpm2026"], run.notebooks)
    if ours and not any(row["verdict"] == "not comparable" for row in ours):
        return [_replicated(ours) + others, _main_number(rows), _without_model(rows)]
    return [_shown(run, items), _result(measured), _not_shown(run, ours) + others]


def _replicated(rows):
    return f"Of {_count(len(rows), 'published result or claim', 'published results and claims')} of the paper that need a trained model: {tally(rows)}."


def _count(number, one, more):
    return f"{number:,} {one if number == 1 else more}"


def _main_number(rows):
    row = next((row for row in rows if row["key"] == HEADLINES[0]), None)
    if row is None or not row["ours"]:
        return "The paper's main number, the external accuracy, was not measured in this run."
    interval = f" (95 % interval {row['interval']})" if row["interval"] else ""
    return (f"The paper's main number, the external accuracy, is {row['ours']} %{interval} here beside {row['published']} % published: "
            f"{row['verdict']}; {row['reason']}.")


def _without_model(rows):
    rest = [row for row in rows if not row["model"]]
    return (f"Of {_count(len(rest), 'row that needs', 'rows that need')} no model (counts, repeated and cited numbers, timings, arithmetic): {tally(rest)}; "
            "these say nothing about how well the model grades.")


def _shown(run, items):
    made = sum(bool(item["page"]) and not item["reason"] for item in items)
    pictures = "drawn knees (synthetic phantoms)" if run.synthetic else "real radiographs"
    time = dict(provenance.facts(run))
    spent = time["Time in notebooks"]
    told = "" if spent == "unknown" else f" The last run took {spent}."
    return (f"Shown: the study runs from the pictures to the report, on {pictures}; {made} of {len(items)} tables and figures of the paper have "
            f"their counterpart in it.{told}")


def _result(measured):
    inside = [part for part in measured if part["role"] == "unseen"]
    outside = [part for part in measured if part["role"] == "external"]
    chosen = [("on pictures of its own cohort that it was not fitted on", part) for part in inside[-1:]] + [("on the external cohort", part) for part in outside[:1]]
    told = [f"{place} (n = {part['pictures']:,}{_shared(part)}) it reaches {_reached(part)}" for place, part in chosen]
    if not told:
        return "Its results are on the pages of the notebooks; no predictions of a main model are kept."
    return f"The main model is {labels.words(measured[0]['model'])}: {'; '.join(told)}. Intervals are 95 %, group bootstrap."


def _shared(part):
    return f"; {part['shared']:,} of {part['groups']:,} patients have another knee in training, and Table S20 asks what such a leak is worth" if part["shared"] else ""


def _reached(part):
    accuracy, kappa = (_interval(part, name) for name in ("accuracy", "qwk"))
    return f"accuracy {accuracy}, {_floor(part)}, and quadratic kappa {kappa}"


def _floor(part):
    # Compared as they are printed, so that nobody reads 0.310 beside "below 0.310".
    constant, (value, interval) = f"{part['constant']:.3f}", part["values"]["accuracy"]
    if float(value) <= float(constant):
        return f"no better than the {constant} of one grade for every knee" if value == constant else f"below the {constant} that one grade for every knee reaches"
    unclear = interval and float(interval.split(" to ")[0]) <= float(constant)
    return f"above the {constant} of one grade for every knee" + ", which its interval does not exclude" * bool(unclear)


def _interval(part, name):
    value, interval = part["values"][name]
    return f"{value} ({interval})".replace("-", MINUS) if interval else value.replace("-", MINUS)


def _not_shown(run, rows):
    if not rows:
        return "Not shown: anything about the paper's results; this run's scorecard has none of them."
    return (f"Not shown: how the paper's model grades patients. {_count(len(rows), 'result or claim', 'results and claims')} of the paper that need a trained model are not scored "
            f"({tally(rows)}), because {_why(run, rows)}.")


def _others(rows, notebooks):
    # Each verdict with its own reasons, and the notebooks to look it up in.
    if not rows:
        return ""
    counts = Counter((row["verdict"], _reason(row)) for row in rows)
    told = "; ".join(f"{number} {verdict}" + f" ({reason})" * bool(reason) for (verdict, reason), number in counts.items())
    systems = dict.fromkeys(row["source"] for row in rows)
    stems = sorted(SYSTEMS[system].notebook for system in systems if system in SYSTEMS and SYSTEMS[system].notebook in notebooks)
    where = Markup(" (notebook{} {})").format("s" * (len(stems) > 1), Markup(", ").join(_page(stem, int(stem[:2])) for stem in stems)) if stems else ""
    return Markup(" Of {} of {}{}: {}.").format(_count(len(rows), "result or claim", "results and claims"), _count(len(systems), "other system", "other systems"), where, told)


def _page(stem, words):
    return Markup('<a href="nb/{}.html">{}</a>').format(stem, words)


def _reason(row):
    if row["verdict"] not in ("not run", "not comparable"):
        return ""
    reason = re.sub(r"^not run: ", "", row["reason"].split(";")[0])
    return re.sub(r"^notebook \w+ has not", "their notebooks have not", reason)


def _why(run, rows):
    if run.synthetic:
        return "the pictures are synthetic phantoms" + " and this is a dry run" * run.dry
    if run.dry:
        return "this is a dry run"
    reasons = (row["reason"].split(";")[0] for row in rows if row["verdict"] == "not comparable")
    return next(reasons, "nothing was measured")
