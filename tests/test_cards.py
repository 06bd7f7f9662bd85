"""Model card, data cards and the front page's verdict: every number comes from a file of the run."""

import dataclasses
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import cohen_kappa_score

from koa_lib.data import cohorts
from koa_lib.paper.published import SYSTEMS
from koa_lib.paper.published import read as read_published
from koa_lib.profile import ROOT
from reports import cards, checklists, front_page, places, provenance

MODEL = "clip-as_printed"


def predict(manifest, right):
    """Predictions that are right for the first `right` pictures and one grade off for the others."""
    grades = manifest["kl_grade"].to_numpy()
    told = np.where(np.arange(len(grades)) < right, grades, (grades + 1) % 5)
    return pd.DataFrame(0.8 * np.eye(5)[told] + 0.04, columns=[f"p{k}" for k in range(5)]).assign(image_id=manifest["image_id"])[["image_id", "p0", "p1", "p2", "p3", "p4"]], told


@pytest.fixture(scope="module")
def run(tmp_path_factory, cohort_a, cohort_b):
    """A run of two phantom cohorts with predictions of known quality."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    for name in ("predictions", "tables", "history", "checkpoints/clip-as_printed__fold2__seed42"):
        (folder / name).mkdir(parents=True)
    files = {}
    for (source, manifest), name, split in ((cohort_a, "phantom_a", "held_out"), (cohort_b, "phantom_b", "external")):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "manifest.csv").write_bytes((source / "manifest.csv").read_bytes())
        files[f"{name}-{split}"] = f"{MODEL}__{name}-{split}__stretch-none__fold2__seed42.csv"
        predict(manifest, len(manifest) // 2)[0].to_csv(folder / "predictions" / files[f"{name}-{split}"], index=False)
    (folder / "primary.json").write_text(json.dumps(files))
    (folder / "data.json").write_text(json.dumps({role: {"hash": "ab12", "pictures": 7, "not_as_listed": 3} for role in ("training", "external")}))
    (folder / "inputs.yaml").write_text(yaml.safe_dump({"profile": "smoke", "seed": 42, "data": "", "external": "", "synthetic": True}))
    (folder / "checkpoints" / "clip-as_printed__fold2__seed42" / "state.safetensors").write_bytes(b"weights")
    (folder / "checkpoints" / "clip-as_printed__fold2__seed42.json").write_text(json.dumps({"key": {"weights": "random"}, "seconds": 12.0}))
    (folder / "tables" / "findings.csv").write_text("finding,phantom_b groups,phantom_b files,phantom_b detail\nequal pixels,4,9,copies\ncolour pictures,0,0,none\n")
    (folder / "history" / f"{MODEL}.csv").write_text(f"model,fold,epoch,part,loss,accuracy\n{MODEL},1,1,train,1.5,0.3\n{MODEL},1,2,train,1.25,0.4\n{MODEL},1,2,held_out,9,0.4\n")
    return provenance.Run.read(folder)


def test_results_of_the_card_are_those_of_the_predictions(run, cohort_a):
    manifest = cohort_a[1]
    part = next(row for row in cards.measured(run) if row["role"] == "unseen")
    told = predict(manifest, len(manifest) // 2)[1]
    assert part["values"]["accuracy"][0] == f"{(told == manifest['kl_grade']).mean():.3f}" and (part["pictures"], part["groups"]) == (24, 12)
    assert part["values"]["qwk"][0] == f"{cohen_kappa_score(manifest['kl_grade'], told, weights='quadratic'):.3f}"
    low, high = map(float, part["values"]["accuracy"][1].split(" to "))
    assert low < float(part["values"]["accuracy"][0]) < high


def test_external_results_stand_on_each_set_once(run, cohort_b):
    parts = [row for row in cards.measured(run) if row["role"] == "external"]
    sizes = [row["pictures"] for row in parts]
    assert [row["part"].split(", ")[-1] for row in parts] == ["raw", "deduplicated", "single knee"]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == len(cohort_b[1]) > sizes[2]


def test_model_card_names_weights_and_training(run):
    card = cards.model_card(run, cards.measured(run))
    digests = dict((what, digest) for what, _, digest in card["weights"])
    assert digests == {"Start weights": "random", "Trained weights of the main model": hashlib.sha256(b"weights").hexdigest()}
    assert dict(card["training"])["Training loss at the end"] == "1.250" and dict(card["recipe"])["Learning rate"] == "0.0001"
    assert dict(card["details"])["Licence of the training pictures"] == "MIT" and card["grades"] == []


def test_data_cards_count_what_the_manifests_list(run, cohort_a):
    found = {card["name"]: card for card in cards.data_cards(run)}
    assert list(found) == ["phantom_a", "phantom_b", "oai_chen2018", "gornale2020"]
    assert found["phantom_a"]["drawn"] and found["phantom_a"]["read"] and not found["gornale2020"]["drawn"]
    assert sum(int(total) for *_, total in found["phantom_a"]["counts"]) == len(cohort_a[1])
    for name in cards.PUBLISHED:
        counts = [tuple(int(n.replace(",", "")) for n in row) for _, row, _ in found[name]["counts"]]
        assert counts == list(cohorts.facts(name).counts.values())
        assert dict(found[name]["facts"])["DOI"] == cohorts.facts(name).doi
    assert dict(found["phantom_b"]["facts"])["Read in this run"].startswith("7 pictures, data hash ab12")


def test_data_cards_tell_known_problems(run):
    found = {card["name"]: card for card in cards.data_cards(run)}
    assert [(row["finding"], row["files"]) for row in found["phantom_b"]["problems"]] == [("equal pixels", "9")] and found["phantom_b"]["clean"] == ["colour pictures"]
    listed = {row["finding"]: int(row["groups"]) for row in found["gornale2020"]["problems"]}
    # Counted by a public notebook on the same set, see the deviations page (D4).
    assert listed["equal pixels"] == 63 and listed["equal pixels under different grades"] == 3 and listed["two knees in one picture"] == 186 and listed["readers disagree"] == 11


def test_a_run_without_predictions_has_cards_without_results(tmp_path):
    (tmp_path / "inputs.yaml").write_text(yaml.safe_dump({"profile": "smoke", "seed": 1, "synthetic": True}))
    empty = provenance.Run.read(tmp_path)
    assert cards.measured(empty) == [] and cards.model_card(empty, [])["weights"] == []
    assert [card["read"] for card in cards.data_cards(empty)] == [False, False]


MODEL_RULE, COUNT_RULE = "a model's rule", "same count as in the manifest"


def written(run, rows):
    """The scorecard of some rows, and the run with every paper item made but one."""
    base = {"source": "jpm2026", "item": "table_2", "row": "test", "metric": "accuracy", "unit": "percent", "published": 76.94, "ours": 75.5, "ci_low": 74.0, "ci_high": 77.0,
            "rule": MODEL_RULE, "verdict": "replicated", "reason": "", "follows_from": "", "model": True}
    pd.DataFrame([base | row for row in rows]).to_csv(run.folder / "tables" / "scorecard.csv", index=False)
    exhibits = {name: {"reason": "not run" if name == "table_5" else ""} for name in places.PAPER_ITEMS}
    return front_page.scores(run.folder), dataclasses.replace(run, exhibits=exhibits)


COUNT = {"model": False, "rule": COUNT_RULE, "item": "text", "row": "data", "metric": "train_images", "unit": "count", "verdict": "same"}


def test_a_replication_says_the_main_number_its_verdict_and_what_is_open(run):
    score, run = written(run, [{}, {"metric": "macro_f1", "verdict": "inconclusive"}, COUNT])
    ran, came_out, not_shown = front_page.sentences(run, score, [])
    assert "12 of the paper's 13 tables and figures" in ran
    assert "75.5 % (74.0 to 77.0) beside 76.94 % published: replicated" in came_out and "Of 2 results" in came_out and "1 inconclusive" in not_shown


def test_phantoms_say_that_the_papers_model_is_not_shown(run):
    score, run = written(run, [{"verdict": "not comparable", "reason": "synthetic phantoms; x"}, {"verdict": "not run", "source": "CLIP-KOA", "item": "abstract"}])
    sentences = front_page.sentences(run, score, cards.measured(run))
    assert "(n = 24)" in sentences[1] and "1 of its results" in sentences[2] and "synthetic phantoms)" in sentences[2] and "replicated" not in " ".join(sentences)


def test_rows_that_follow_from_one_contradiction_are_counted_once(run):
    score, _ = written(run, [{}, {"verdict": "not replicated"}, {"verdict": "not replicated", "follows_from": "x"}])
    counts = dict(front_page.verdicts(score))
    assert list(counts.values()) == ["1 replicated, 1 not replicated"]


def test_every_other_paper_has_a_notebook_readings_and_a_reference():
    listed = {name for row in yaml.safe_load((checklists.FOLDER / "readings.yaml").read_text(encoding="utf-8")) if "system" in row for name in row["system"].split(", ")}
    named = {*read_published(cohorts.MANIFESTS / "published", "other_systems")["system"], *read_published(cohorts.MANIFESTS / "published", "claims")["source"]} - {"jpm2026"}
    assert listed == set(SYSTEMS) == named
    bib = (ROOT / "reports" / "references.bib").read_text(encoding="utf-8")
    for system in SYSTEMS.values():
        assert (ROOT / "notebooks" / f"{system.notebook}.ipynb").is_file() and f"{{{system.reference}," in bib


def test_the_floor_and_the_shared_patients_are_counted(run, cohort_a):
    part = next(row for row in cards.measured(run) if row["role"] == "unseen")
    assert part["constant"] == cohort_a[1]["kl_grade"].value_counts().max() / len(cohort_a[1]) and part["shared"] is None
    files = json.loads((run.folder / "primary.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "note", lambda path, default: files | {"phantom_a-train": f"{MODEL}__phantom_a-train__stretch-none__fold2__seed42.csv"})
        kept = run.folder / "predictions" / f"{MODEL}__phantom_a-train__stretch-none__fold2__seed42.csv"
        predict(cohort_a[1], 3)[0].head(5).to_csv(kept, index=False)
        shared = next(row["shared"] for row in cards.measured(run) if row["role"] == "unseen")
        kept.unlink()
    assert shared == cohort_a[1].head(5)["group_id"].nunique()
