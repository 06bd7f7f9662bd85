"""The model card of a run, filled from its result files; no number is typed."""

import pandas as pd

from koa_lib import metrics, predictions
from koa_lib.data import cohorts, sets
from koa_lib.report import words
from reports import provenance

SHOWN = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro-F1",
         "qwk": "QWK", "within_one": "Within one", "ece": "ECE"}
TARGETS = {"hard": "the grade alone", "ordinal": "neighbouring grades have a share, exp(-2 |i - j|)"}
STARTS = {"pretrain": "pre-trained in this run on captioned phantoms", "random": "random weights",
          "openai": "OpenAI's published weights"}
PARTS = {"adapter": "an adapter after frozen encoders",
         "projection": "final norm and projection of the image encoder",
         "last_blocks": "the last two blocks, final norm and projection of the image encoder",
         "full_image": "the whole image encoder", "both_encoders": "both encoders"}


def results(run):
    """The main model on each part that `primary.json` names; external parts also without repeats and on
    single knees.

    Returns
    -------
    list of dict
        model, cohort, role ('fitted', 'unseen' or 'external'), part (in words), pictures, groups, constant
        (accuracy of the best constant answer), shared (how many of the groups are patients with another knee
        in the fitted part; None where unknown), and values: metric -> ('0.612', '0.580 to 0.644'), the latter
        the 95 % group-bootstrap interval. Empty without predictions.
    """
    rows = []
    for file in provenance.note(run.folder / "primary.json", {}).values():
        path = run.folder / "predictions" / file
        if path.is_file():
            rows += _parts(run, path)
    return [_without_ids(row, rows) for row in rows]


def _without_ids(row, rows):
    fitted = [other["ids"] for other in rows
              if other["role"] == "fitted" and other["cohort"] == row["cohort"]]
    known = row["role"] == "unseen" and fitted and cohorts.facts(row["cohort"]).group == "patient"
    return {name: value for name, value in row.items() if name != "ids"} | {
        "shared": len(row["ids"] & fitted[0]) if known else None}


def _parts(run, path):
    model, where, *_, fold, _seed = path.stem.split("__")[:5]
    cohort, split = where.rsplit("-", 1)
    graded = predictions.join(predictions.read(path), provenance.manifest(run, cohort))
    role = {"external": "external", "train": "fitted"}.get(split, "unseen")
    shown = {"": graded}
    if role == "external":
        graded = _near_groups(run, cohort, graded)
        shown = {f", {name.replace('_', ' ')}": graded[graded["image_id"].isin(sets.subset(graded, name))]
                 for name in sets.SUBSETS}
    told = words.people(split) + (
        f", {fold.replace('fold', 'fold ')}" if split in ("train", "external") and fold != "foldmean" else "")
    return [{"model": model, "cohort": cohort, "role": role, "part": told + name, "pictures": len(part),
             "groups": part["group_id"].nunique(), "values": _values(run, part),
             "constant": metrics.best_constant(part["kl_grade"])["accuracy"], "ids": set(part["group_id"])}
            for name, part in shown.items() if len(part)]


def _values(run, graded):
    from koa_lib import stats

    found = stats.measured(graded, SHOWN, run.settings.draws, run.seed)
    return {name: _with_interval(found[name], found[f"{name}_low"], found[f"{name}_high"]) for name in SHOWN}


def _with_interval(value, low, high):
    if value != value:
        return "–", ""
    return f"{value:.3f}", f"{low:.3f} to {high:.3f}" if low == low else ""


def _near_groups(run, cohort, graded):
    # As in the notebooks: groups of near-duplicates stand in for patients, who are unknown there.
    path = run.folder / "tables" / "sets.csv"
    if not path.is_file():
        return graded
    listed = pd.read_csv(path, dtype=str)
    groups = listed[listed["cohort"] == cohort].set_index("image_id")["near_group"]
    return graded.assign(group_id=graded["image_id"].map(groups).fillna(graded["group_id"]))


def card(run, results):
    """Everything on the model card: name, details, recipe (name-value pairs), results, grades, weights,
    licences.

    Parameters
    ----------
    run : Run
    results : list of dict
        As from `results`.
    """
    settings = run.settings
    recipe = settings.as_printed or settings.our_protocol
    model = settings.model
    start = cohorts.facts(settings.training.name)
    details = [
        ("Model", f"{words.people(results[0]['model']) if results else 'CLIP'}: {model.name}, "
                  f"pictures of {model.image_size} × {model.image_size} pixels"),
        ("Starts from", STARTS[model.start]),
        ("Trained part", PARTS[recipe.part]),
        ("Protocol", "as printed in the paper" if settings.as_printed
         else "our protocol: official split, patients kept apart"),
        ("Output", "a probability for each of the five KL grades; the grade is the most probable one"),
        ("Commit", dict(provenance.facts(run))["Commit"]),
        ("Licence of the code", "MIT"),
        ("Licence of the training pictures", start.licence),
    ]
    weights = [row for row in provenance.hashes(run) if "weights" in row[0].lower()]
    return {"details": details, "recipe": _recipe(recipe), "training": _training(run, results),
            "results": [row | {"cohort": words.people(row["cohort"])} for row in results],
            "metrics": SHOWN, "grades": _per_grade(run), "weights": weights}


def _recipe(recipe):
    intensity = "unchanged" if recipe.intensity == "none" else words.people(recipe.intensity)
    rows = [
        ("Loss", {"prototypes": "cross-entropy over five text prototypes",
                  "infonce": "symmetric InfoNCE"}.get(recipe.loss, recipe.loss)),
        ("Prompts", words.people(recipe.prompts).replace("_", " ")),
        ("Normalisation", {"imagenet": "ImageNet statistics",
                           "clip": "CLIP statistics"}[recipe.normalisation]),
        ("Geometry and intensity", f"{words.people(recipe.geometry)}, {intensity}"),
        ("Augmentation", recipe.augmentation.replace("_", " ")),
        ("Targets", TARGETS[recipe.targets]),
        ("Epochs", recipe.epochs),
        ("Batch", recipe.batch),
        ("Learning rate", _plain(recipe.learning_rate)),
        ("Weight decay", _plain(recipe.weight_decay)),
        ("Folds", recipe.folds or "official split only"),
    ]
    more = {"Residual ratio of the adapter": _plain(recipe.residual) * (recipe.part == "adapter"),
            "Warm-up": f"{recipe.warm_up:.0%} of the steps" * bool(recipe.warm_up),
            "Kept weights": f"running average, decay {_plain(recipe.averaging)}" * bool(recipe.averaging),
            "Early stopping": f"after {recipe.patience} epochs without gain" * bool(recipe.patience)}
    return rows + [(name, value) for name, value in more.items() if value]


def _plain(value):
    return f"{value:.10f}".rstrip("0").rstrip(".")


def _training(run, results):
    fitted = next((row for row in results if row["role"] == "fitted"), None)
    rows = [("Cohort", cohorts.facts(run.settings.training.name).title)]
    if fitted:
        chose = "; a tenth of the patients chose the epoch" * (fitted["model"] == "clip-our_protocol")
        rows += [("Trained with", f"{fitted['pictures']:,} pictures of {fitted['groups']:,} patients{chose}")]
    rows += _history(run, results[0]["model"]) if results else []
    for folder in provenance.main_checkpoints(run):
        seconds = provenance.note(folder.with_name(f"{folder.name}.json"), {}).get("seconds")
        rows += ([("Time to train this fold, embeddings apart", f"{seconds:,.0f} s")]
                 if seconds is not None else [])
    return rows


def _history(run, model):
    path = run.folder / "history" / f"{model}.csv"
    if not path.is_file():
        return []
    history = pd.read_csv(path).query("part == 'train'")
    last = history[history["epoch"] == history.groupby("fold")["epoch"].transform("max")]
    ends = " to ".join(dict.fromkeys(f"{value:.3f}" for value in (last["loss"].min(), last["loss"].max())))
    return [("Trainings", f"{len(last)} folds of {last['epoch'].max()} epochs" if len(last) > 1
             else f"one, {last['epoch'].max()} epochs"), ("Training loss at the end", ends)]


def _per_grade(run):
    # Table 3 of this run without the published columns: number, grade name, n, sensitivity with interval,
    # specificity, AUC.
    rows = provenance.table(run, "table_3")
    if not rows or "kl_grade" not in rows[0]:
        return []
    return [(row["kl_grade"], row["name"], row["n"],
             _percent(row["sensitivity"], row["ci_low"], row["ci_high"]), _percent(row["specificity"]),
             _number(row["auc"])) for row in rows]


def _percent(value, low="", high=""):
    return "–" if not value else f"{float(value):.1f}" + (
        f" ({float(low):.1f} to {float(high):.1f})" if low and high else "")


def _number(value):
    return f"{float(value):.3f}" if value else "–"
