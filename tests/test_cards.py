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
from koa_lib.paper import published
from koa_lib.profile import ROOT
from reports import checklists, data_cards, front_page, model_card, places, provenance

MODEL, INPUTS = "clip-as_printed", "{profile: smoke, seed: 42, synthetic: true}"


def answers(manifest, right):
    """Grades that are right for the first `right` pictures and one off for the others."""
    grades = manifest["kl_grade"].to_numpy()
    return np.where(np.arange(len(grades)) < right, grades, (grades + 1) % 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cohort_a, cohort_b):
    """A run of two phantom cohorts with predictions of known quality; it was fitted on five pictures."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    trained = folder / f"checkpoints/{MODEL}__fold2__seed42"
    for path in (folder / "predictions", folder / "tables", folder / "history", trained):
        path.mkdir(parents=True)
    files = {}
    for (source, manifest), part in ((cohort_a, "phantom_a-held_out"), (cohort_b, "phantom_b-external"),
                                     ((cohort_a[0], cohort_a[1].head(5)), "phantom_a-train")):
        data = folder / "data" / part.split("-")[0]
        data.mkdir(parents=True, exist_ok=True)
        (data / "manifest.csv").write_bytes((source / "manifest.csv").read_bytes())
        files[part] = f"{MODEL}__{part}__stretch-none__fold2__seed42.csv"
        told = answers(manifest, len(manifest) // 2)
        frame = pd.DataFrame(0.8 * np.eye(5)[told] + 0.04, columns=[f"p{k}" for k in range(5)])
        frame.insert(0, "image_id", manifest["image_id"].to_numpy())
        frame.to_csv(folder / "predictions" / files[part], index=False)
    (folder / "primary.json").write_text(json.dumps(files))
    read = {"hash": "ab12", "pictures": 7, "not_as_listed": 3}
    (folder / "data.json").write_text(json.dumps({"training": read, "external": read}))
    (folder / "inputs.yaml").write_text(INPUTS)
    (trained / "state.safetensors").write_bytes(b"weights")
    trained.with_name(f"{trained.name}.json").write_text(json.dumps({"key": {"weights": "random"}}))
    (folder / "tables" / "findings.csv").write_text(
        "finding,phantom_b groups,phantom_b files,phantom_b detail\n"
        "equal pixels,4,9,x\ncolour pictures,0,0,x\n")
    (folder / "history" / f"{MODEL}.csv").write_text(
        f"model,fold,epoch,part,loss,accuracy\n{MODEL},1,1,train,1.5,0.3\n{MODEL},1,2,train,1.25,0.4\n"
        f"{MODEL},1,2,held_out,9,0.4\n")
    return provenance.Run.read(folder)


@pytest.fixture(scope="module")
def results(run):
    return model_card.results(run)


def test_results_of_the_card_are_those_of_the_predictions(results, cohort_a):
    grades, (part,) = cohort_a[1]["kl_grade"], [row for row in results if row["role"] == "unseen"]
    told = answers(cohort_a[1], len(grades) // 2)
    value, interval = part["values"]["accuracy"]
    assert value == f"{(told == grades).mean():.3f}"
    assert (part["pictures"], part["groups"]) == (24, 12)
    assert part["values"]["qwk"][0] == f"{cohen_kappa_score(grades, told, weights='quadratic'):.3f}"
    low, high = map(float, interval.split(" to "))
    assert low < float(value) < high and part["constant"] == grades.value_counts(normalize=True).max()
    assert part["shared"] == cohort_a[1]["group_id"].head(5).nunique()


def test_external_results_stand_on_each_set_once(results, cohort_b):
    parts = [row for row in results if row["role"] == "external"]
    sizes = [row["pictures"] for row in parts]
    assert [row["part"].split(", ")[-1] for row in parts] == ["raw", "deduplicated", "single knee"]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == len(cohort_b[1]) > sizes[2]


def test_model_card_names_weights_and_training(run, results):
    card = model_card.card(run, results)
    digests = {what: digest for what, _, digest in card["weights"]}
    assert digests["Trained weights of the main model"] == hashlib.sha256(b"weights").hexdigest()
    assert digests["Start weights"] == "random" and dict(card["recipe"])["Learning rate"] == "0.0001"
    assert dict(card["training"])["Training loss at the end"] == "1.250"


def test_data_cards_count_what_the_manifests_list_and_tell_known_problems(run, cohort_a):
    found = {card["name"]: card for card in data_cards.cards(run)}
    assert list(found) == ["phantom_a", "phantom_b", *cohorts.PUBLISHED]
    assert found["phantom_a"]["drawn"] and found["phantom_a"]["read"] and not found["gornale2020"]["drawn"]
    assert sum(int(total) for *_, total in found["phantom_a"]["counts"]) == len(cohort_a[1])
    for name in cohorts.PUBLISHED:
        counts = [tuple(int(n.replace(",", "")) for n in row) for _, row, _ in found[name]["counts"]]
        assert counts == list(cohorts.facts(name).counts.values())
    problems = {name: {row["finding"]: row for row in card["problems"]} for name, card in found.items()}
    assert problems["phantom_b"]["equal pixels"]["files"] == "9"
    assert found["phantom_b"]["clean"] == ["colour pictures"] and len(problems["phantom_b"]) == 1
    # Counted by a public notebook on the same set, see the deviations page (D4).
    known = {"equal pixels": "63", "equal pixels under different grades": "3",
             "two knees in one picture": "186", "readers disagree": "11"}
    assert {name: problems["gornale2020"][name]["groups"] for name in known} == known


def test_a_run_without_predictions_has_cards_without_results(tmp_path):
    (tmp_path / "inputs.yaml").write_text(INPUTS)
    empty = provenance.Run.read(tmp_path)
    assert model_card.results(empty) == [] and model_card.card(empty, [])["weights"] == []
    assert [card["read"] for card in data_cards.cards(empty)] == [False, False]


# The front page

ROW = {"source": "jpm2026", "item": "table_2", "row": "test", "metric": "accuracy", "unit": "percent",
       "published": 76.94, "ours": 75.5, "ci_low": 74.0, "ci_high": 77.0, "rule": "x", "model": True,
       "verdict": "replicated", "reason": "", "follows_from": ""}


@pytest.fixture
def front(run, results):
    """A function from rows of the scorecard to sentences and counts; all paper items but one are made."""
    def of(*rows):
        pd.DataFrame([ROW | row for row in rows]).to_csv(run.folder / "tables" / "scorecard.csv", index=False)
        made = {name: {"reason": "not run" if name == "table_5" else ""} for name in places.PAPER_ITEMS}
        made["views"] = {"reason": "" if (run.folder / "tables" / "views.csv").exists() else "not run"}
        score = front_page.scores(run.folder)
        sentences = front_page.sentences(dataclasses.replace(run, exhibits=made), score, results)
        return sentences, dict(front_page.verdicts(score))

    return of


def test_a_replication_says_the_main_number_its_verdict_and_what_is_open(front):
    (ran, came_out, open_), _ = front({}, {"metric": "macro_f1", "verdict": "inconclusive"}, {"model": False})
    assert "12 of the paper's 13" in ran and "1 inconclusive" in open_ and "Of 2 results" in came_out
    assert all(word in came_out for word in ("75.5 %", "74.0 to 77.0", "76.94 %", "replicated"))


def test_phantoms_say_that_the_papers_model_is_not_shown(front):
    (_, came_out, open_), _ = front({"verdict": "not comparable", "reason": "synthetic phantoms; x"},
                                    {"verdict": "not run", "source": "CLIP-KOA"})
    assert "n = 24" in came_out and "1 of its results" in open_ and "synthetic phantoms)" in open_
    assert "replicated" not in came_out + open_


@pytest.mark.parametrize("as_trained, told", [("no", True), ("yes", False)])
def test_the_confirmatory_view_is_told_where_training_had_another(front, run, as_trained, told):
    view = {"status": "confirmatory", "as_trained": as_trained, "n": 52, "accuracy": 0.2116, "ci_low": 0.1154,
            "ci_high": 0.3269, "qwk": 0.0893}
    pd.DataFrame([view, view | {"status": "sensitivity", "accuracy": 0.9}]).to_csv(
        run.folder / "tables" / "views.csv", index=False)
    (_, came_out, _), _ = front({"verdict": "not comparable", "reason": "x"})
    assert ("n = 52" in came_out and "0.212 (0.115 to 0.327)" in came_out) == told and "0.900" not in came_out


def test_rows_that_follow_from_one_contradiction_are_counted_once(front):
    _, counts = front({}, {"verdict": "not replicated"}, {"verdict": "not replicated", "follows_from": "x"})
    assert list(counts.values()) == ["1 replicated, 1 not replicated"]


def test_every_other_paper_has_a_notebook_readings_and_a_reference():
    readings = yaml.safe_load((checklists.FOLDER / "readings.yaml").read_text(encoding="utf-8"))
    listed = {name for row in readings if "system" in row for name in row["system"].split(", ")}
    rows = (published.read(cohorts.MANIFESTS / "published", name) for name in ("other_systems", "claims"))
    named = {name for table, column in zip(rows, ("system", "source"), strict=True) for name in table[column]}
    assert listed == set(published.SYSTEMS) == named - {"jpm2026"}
    bib = (ROOT / "reports" / "references.bib").read_text(encoding="utf-8")
    for system in published.SYSTEMS.values():
        assert (ROOT / "notebooks" / f"{system.notebook}.ipynb").is_file() and f"{{{system.reference}," in bib
