"""The front page: what was run, what came out and what was not shown, in three sentences and one picture."""

import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.paper import rules
from koa_lib.paper.published import SYSTEMS
from koa_lib.report import words
from reports import places

PAPER, MAIN = "jpm2026", ("table_2", "test", "accuracy")
PICTURES = ("published_against_ours", "figure_7")  # exhibits that make the one picture


def front(run, results, readings):
    """Everything on the front page.

    Parameters
    ----------
    run : Run
    results : list of dict
        As from `model_card.results`: the main model on each part.
    readings : list of dict
        As from `checklists.readings`; those of other papers name their system.

    Returns
    -------
    dict
        sentences (3), pictures (exhibits), items (of the paper), verdicts (columns and rows of counts),
        papers (other systems).
    """
    score = scores(run.folder)
    return {"sentences": sentences(run, score, results),
            "pictures": [_exhibit(run, key) for key in PICTURES if not run.exhibits[key]["reason"]],
            "items": [_exhibit(run, key) | {"shows": shows} for key, shows in places.PAPER_ITEMS.items()],
            "verdicts": verdicts(score),
            "scorecard": places.page("scorecard", run.exhibits["scorecard"]["notebook"]),
            "papers": _papers(run, score, readings)}


def scores(run_dir):
    """`tables/scorecard.csv`; its column `model` says whether the row needs a trained model."""
    texts = {"follows_from": str, "reason": str}
    path = run_dir / "tables" / "scorecard.csv"
    try:
        score = pd.read_csv(path, dtype=texts).fillna(dict.fromkeys(texts, ""))
        whole = (score["verdict"].isin(rules.VERDICTS + rules.FOUND).all()
                 and score["model"].isin([True, False]).all() and len(score))
    except (ValueError, KeyError):
        whole = False
    if not whole:
        raise StudyError(f"{path} is damaged. Delete the executed notebook 13_scorecard in the folder nb "
                         "and run make again.")
    return score


def verdicts(score):
    """Counts of verdicts; a row that follows from another one is counted there."""
    kinds = (("The paper: results and claims that need a trained model",
              score["model"] & (score["source"] == PAPER)),
             ("Other systems: results and claims that need a trained model",
              score["model"] & (score["source"] != PAPER)),
             ("Counts, repeated and cited numbers, times, arithmetic", ~score["model"]))
    return [(name, tally(score[chosen])) for name, chosen in kinds if chosen.any()]


def tally(rows):
    """'3 replicated, 1 not run' for some rows of the scorecard, each contradiction counted once."""
    counts = rows.loc[rows["follows_from"] == "", "verdict"].value_counts()
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict
                     in dict.fromkeys(rules.VERDICTS + rules.FOUND) if verdict in counts) or "none"


def sentences(run, score, results):
    """What was run, what came out and what was not shown; the numbers are the run's."""
    ours = score[score["model"] & (score["source"] == PAPER)]
    pictures = "drawn knees (synthetic phantoms)" if run.synthetic else "real radiographs"
    made = sum(not run.exhibits[key]["reason"] for key in places.PAPER_ITEMS)
    ran = (f"Run: the whole study, from {pictures} to this report; {made} of the paper's "
           f"{len(places.PAPER_ITEMS)} tables and figures have their counterpart in it.")
    if ours["verdict"].isin(["not comparable", "not run"]).all():
        reason = ours["reason"].str.split(";").str[0].mode()[0]
        return [ran, _came_out(results, _confirmatory(run)),
                f"Not shown: how the paper's model grades patients. {len(ours)} of its results and claims "
                f"are not scored ({tally(ours)}; {reason})."]
    return [ran,
            f"Came out: {_main(ours)} Of {len(ours)} results and claims of the paper that need a trained "
            f"model: {tally(ours)}.",
            "Not shown by this run: "
            f"{tally(ours[ours['verdict'].isin(['not comparable', 'not run', 'inconclusive'])])}; "
            "the reasons stand in the scorecard."]


def _main(ours):
    row = ours[(ours["item"] == MAIN[0]) & (ours["row"] == MAIN[1]) & (ours["metric"] == MAIN[2])].iloc[0]
    if pd.isna(row.ours):
        return "the paper's main number, the external accuracy, was not measured."
    return (f"external accuracy {row.ours:.1f} % ({row.ci_low:.1f} to {row.ci_high:.1f}) "
            f"beside {row.published:.2f} % published: {row.verdict}.")


def _confirmatory(run):
    # The external result as the paper shows the pictures, where the main model was trained on them otherwise.
    if run.exhibits["views"]["reason"]:
        return []
    rows = pd.read_csv(run.folder / "tables" / "views.csv").reindex(
        columns=["status", "as_trained", "n", "accuracy", "ci_low", "ci_high", "qwk"])
    rows = rows[(rows["status"] == "confirmatory") & (rows["as_trained"] == "no")]
    return [f"there shown stretched and without repeats (n = {row.n:,}), the confirmatory view, accuracy "
            f"{row.accuracy:.3f} ({row.ci_low:.3f} to {row.ci_high:.3f}) and quadratic kappa {row.qwk:.3f}"
            for row in rows.itertuples()]


def _came_out(results, confirmatory):
    unseen = [part for part in results if part["role"] == "unseen"][-1:]
    outside = [part for part in results if part["role"] == "external"][:1]
    told = [f"{place} (n = {part['pictures']:,}{_shared(part)}) "
            f"it reaches accuracy {_value(part, 'accuracy')}, "
            f"where one grade for every knee reaches {part['constant']:.3f}, "
            f"and quadratic kappa {_value(part, 'qwk')}"
            for place, parts in (("on unseen knees of its own cohort", unseen),
                                 ("on the external cohort", outside)) for part in parts]
    return (f"Came out: the main model is {words.people(results[0]['model'])}; "
            f"{'; '.join([*told, *confirmatory])} "
            "(95 % intervals, group bootstrap)."
            if told else "Came out: no predictions of a main model are kept.")


def _shared(part):
    return (f"; {part['shared']:,} of {part['groups']:,} patients have their other knee in training"
            if part["shared"] else "")


def _value(part, metric):
    value, interval = part["values"][metric]
    return words.typeset(f"{value} ({interval})" if interval else value)


def _exhibit(run, key):
    found = run.exhibits[key]
    notebook = found["notebook"]
    return found | {"key": key, "page": places.page(key, notebook),
                    "heading": places.title(run.notebooks[notebook], notebook)}


def _papers(run, score, readings):
    found = []
    for name, system in SYSTEMS.items():
        rows = score[score["model"] & (score["source"] == name)]
        found.append({
            "system": name, "reference": system.reference, "page": f"notebooks/{system.notebook}.html",
            "heading": places.title(run.notebooks[system.notebook], system.notebook), "tally": tally(rows),
            "readings": [row["number"] for row in readings if name in row.get("system", "").split(", ")]})
    return found
