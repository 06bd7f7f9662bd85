"""What `make bench` measured on this machine, beside the two times that the paper prints."""

import pandas as pd

from koa_lib import profile, study

ABSENT = "speed is no part of a run: 'make bench' measures it, and the next run shows it"
WORDS = {"embed": "embedding pictures", "finetune_adapter": "fine-tuning the adapter",
         "finetune_last_blocks": "fine-tuning the last blocks", "folds": "five folds of the last blocks",
         "one_picture": "grading one picture", "table_3": "intervals of Table 3",
         "query": "query of a large archive", "as_printed": "one training as printed"}
PICTURES = 8260  # of one training as printed


def table(published, path=None):
    """Times of this machine, in a plain way and in ours; shown, not judged.

    Parameters
    ----------
    published : DataFrame
        `published/jpm2026.csv`.
    path : Path, optional
        The bench's table; by default that of `make bench`.

    Returns
    -------
    DataFrame or str
        metric (of the published row, or empty), work, unit, relation, published (NaN where nothing is
        printed), plain, ours, ratio, note; or why there is none.
    """
    path = path or study.BUILD / "bench" / "bench.csv"
    if not path.is_file():
        return ABSENT
    found = pd.read_csv(path)
    found = pd.concat([found, pd.DataFrame([_as_printed(found.set_index("work"))])], ignore_index=True)
    metrics = found["work"].map({"one_picture": "inference_ms", "as_printed": "training_minutes"}).fillna("")
    printed = published[published["row"] == "runtime"].set_index("metric").reindex(metrics)
    found.insert(0, "metric", metrics)
    found.insert(3, "published", printed["value"].to_numpy())
    work = found["work"].map(WORDS).fillna(found["work"])
    return found.assign(work=work, relation=printed["relation"].fillna("").to_numpy())


def costs(path=None):
    """The table of `bench.costs`, by default that of `make bench`; or why there is none."""
    path = path or study.BUILD / "bench" / "costs.csv"
    return pd.read_csv(path) if path.is_file() else ABSENT


def _as_printed(found):
    # One training as printed: each picture embedded once per view (plainly in every epoch), then the adapter.
    recipe = profile.load("paper").as_printed
    steps = recipe.epochs * PICTURES
    plain, ours = (steps / found[way]["finetune_adapter"] / 60 for way in ("plain", "ours"))
    ours += PICTURES * recipe.views / found["ours"]["embed"] / 60
    note = (f"computed, not run, from the rates of embed and finetune_adapter: {PICTURES:,} pictures, "
            f"{recipe.views} views, {recipe.epochs} epochs")
    return {"work": "as_printed", "plain": plain, "ours": ours, "unit": "minutes", "ratio": plain / ours,
            "note": note}
