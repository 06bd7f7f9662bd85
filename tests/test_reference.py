"""Reference tables: kept per data, and a fresh run differs from them by no more than what is stated."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from koa_lib.errors import StudyError
from reports import __main__ as pages
from reports import reference

SCORE = {"item": "table_2", "row": "test", "metric": "accuracy", "unit": "percent", "published": 76.94,
         "ours": 60.0, "ci_low": 55.0, "ci_high": 65.0, "verdict": "not replicated", "reason": "off by -16.9"}
FOLD = {"part": "train", "fold": 1, "n": 960, "accuracy": 0.5, "qwk": 0.7, "mae": 0.6}
FACT = {**SCORE, "verdict": "same", "reason": "counted in the manifest"}
TABLE_4 = {"model": "ViT", "n": 420, "accuracy": 60.0, "published_accuracy": 73.7}
# Table, its row, the column that moves and by how much it may: one line per kind of cell.
KINDS = [
    ("folds_and_seeds", FOLD, "accuracy", 0.05),
    ("folds_and_seeds", FOLD, "n", 0),
    ("tomorrow", {"arm": "x", "macro_f1": 0.4, "trees": 40}, "macro_f1", 0.05),
    ("tomorrow", {"arm": "x", "macro_f1": 0.4, "trees": 40}, "trees", 0),
    ("table_4", TABLE_4, "accuracy", 10),
    ("table_4", TABLE_4, "published_accuracy", 0),
    ("mcnemar", {"baseline": "ViT", "n": 355, "difference": -0.15}, "difference", 0.1),
    ("table_5", {"source": "this run", "system": "clip", "accuracy": 50.0}, "accuracy", 5),
    ("table_5", {"source": "public peer", "system": "Chen VGG19", "accuracy": 69.63}, "accuracy", 0),
    ("by_metric", {"metric": "mae", "value": 0.7, "ci_low": 0.6}, "ci_low", 0.1),
    ("arithmetic", {"check": "macro F1 implied", "value": 72.6, "expected": 76.66}, "value", 0),
    ("scorecard", SCORE, "ours", 5),
    ("scorecard", SCORE, "ci_low", 10),
    ("scorecard", {**SCORE, "unit": "ratio", "metric": "auc", "ours": 0.8}, "ours", 0.05),
    ("scorecard", FACT, "ours", 0),
]
JUDGED = {**SCORE, "verdict": "not comparable", "reason": "synthetic phantoms"}
LONG = {"image_id": 90096950010001}
# Table, its row, what changes and the columns that miss.
CHANGES = [
    ("mcnemar", {"baseline": "ViT", "p_holm": 0.04}, {"p_holm": 0.3}, []),
    ("mcnemar", {"baseline": "ViT", "clip_only": 50}, {"clip_only": 70}, []),
    ("scorecard", SCORE, {"verdict": "inconclusive", "reason": "ours differs by -15"}, []),
    ("scorecard", {**SCORE, "metric": "p_value", "unit": "ratio", "ours": 0.04}, {"ours": 0.2}, []),
    ("scorecard", FACT, {"verdict": "differs"}, ["verdict"]),
    ("scorecard", JUDGED, {"verdict": "replicated"}, ["verdict"]),
    ("folds_and_seeds", FOLD, {"part": "test", "accuracy": 0.9}, ["part"]),  # another row: no numbers
    ("folds_and_seeds", FOLD, {"qwk": np.nan}, ["qwk"]),
    ("folds_and_seeds", FOLD, {"qwk": np.inf}, ["qwk"]),
    ("folds_and_seeds", {**FOLD, "qwk": np.nan}, {"qwk": 0.5}, ["qwk"]),
    ("folds_and_seeds", FOLD, {"qwk": "none"}, ["qwk"]),
    ("folds_and_seeds", FOLD, {"new": 1}, ["new"]),
    ("three", LONG, {"image_id": LONG["image_id"] + 1}, ["image_id"]),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder, empty but for its inputs, and a place for references beside the committed tolerances."""
    kept, folder = tmp_path / "reports" / "reference", tmp_path / "run"
    kept.mkdir(parents=True)
    monkeypatch.setattr(reference, "TOLERANCES", shutil.copy(reference.TOLERANCES, kept / "tolerances.yaml"))
    monkeypatch.setattr(reference, "FOLDER", kept)
    (folder / "tables").mkdir(parents=True)
    read(folder, "abc-def")
    return folder


def read(run, data_hash, synthetic=False):
    (run / "inputs.yaml").write_text(f"profile: run\ndata: ''\nsynthetic: {str(synthetic).lower()}\n")
    (run / "data.json").write_text(json.dumps({"hash": data_hash}))


def write(run, **tables):
    """Let these, and no others, be the tables that the run has made."""
    shutil.rmtree(run / "tables")
    (run / "tables").mkdir()
    known = dict.fromkeys(("name", "kind", "notebook", "title", "reason", "commit", "data"), "")
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(run / "tables" / f"{name}.csv", index=False, lineterminator="\n")
    listed = {name: known | {"files": [f"tables/{name}.csv"]} for name in tables}
    (run / "exhibits.json").write_text(json.dumps(listed))


def misses(run, name, before, after):
    """What misses when a table was `before` in the reference and is `after` now."""
    write(run, **{name: before})
    reference.keep(run)
    write(run, **{name: after})
    return reference.compare(run).misses


@pytest.mark.parametrize("name, row, column, allowed", KINDS, ids=[f"{kind[0]}-{kind[2]}" for kind in KINDS])
def test_a_number_may_move_by_what_is_stated_and_no_further(run, name, row, column, allowed):
    moves = [(0, False), (0.999 * allowed, False), (-0.999 * allowed, False)]
    moves += [(sign * (1.001 * allowed or 1e-5), True) for sign in (1, -1)]
    missed = misses(run, name, [row] * len(moves), [{**row, column: row[column] + move} for move, _ in moves])
    assert missed["table"].eq(name).all() and missed["column"].eq(column).all()
    found = missed["found"].astype(float) - row[column]
    assert list(found) == pytest.approx([move for move, beyond in moves if beyond])
    assert list(missed["allowed"]) == [allowed] * 2


@pytest.mark.parametrize("name, row, change, missing", CHANGES)
def test_texts_must_be_equal_but_where_a_few_pictures_turn_them_over(run, name, row, change, missing):
    assert list(misses(run, name, [row], [{**row, **change}])["column"]) == missing


def test_a_row_or_table_of_one_side_only_is_named(run):
    write(run, one=[FOLD], two=[FOLD, {**FOLD, "fold": 2}])
    reference.keep(run)
    write(run, two=[{**FOLD, "fold": 2}], three=[FOLD])
    missed = reference.compare(run).misses
    assert missed[["table", "row", "reference"]].to_numpy().tolist() == [
        ["one", "", "there"], ["three", "", "missing"], ["two", "part train, fold 1, n 960", "there"]]


def test_line_ends_and_number_format_do_not_matter(run):
    write(run, folds_and_seeds=[FOLD])
    table = run / "tables" / "folds_and_seeds.csv"
    table.write_bytes(b'part,n,qwk,note\n"train\nwhole",960,0.5,\ntest,1e3,,nan\n')
    kept = reference.keep(run)
    table.write_bytes(b'part,n,qwk,note\r\n"train\r\nwhole",960.0,5.0e-1,NaN\r\n"test",1000,NaN,""\r\n')
    found = reference.compare(run)
    assert found.misses.empty and (found.folder, found.tables, found.numbers) == (kept, 1, 3)
    assert "1 tables, 3 numbers" in reference.report(found)


def test_the_report_of_many_misses_is_short_and_counts_the_rest(run):
    rows = [{**FOLD, "fold": fold} for fold in range(40)]
    write(run, one=rows, two=[FOLD])
    reference.keep(run)
    write(run, one=[{**row, "qwk": 0.1} for row in rows], two=[{**FOLD, "n": 1}])
    lines = reference.report(reference.compare(run)).splitlines()
    assert len(lines) <= 23 and "41 differences" in lines[0]
    assert any("n is 1, in the reference 960" in line for line in lines)
    assert any("37 more; by table: one 40, two 1" in line for line in lines)


def test_phantoms_are_kept_by_the_name_of_the_run_and_real_data_by_their_hash(run):
    write(run, folds_and_seeds=[FOLD])
    assert reference.keep(run) == reference.FOLDER / "run" / "abc-def"
    read(run, "123-456")
    with pytest.raises(StudyError, match="run/123-456.*make reference"):
        reference.compare(run)
    read(run, "123-456", synthetic=True)
    assert reference.keep(run) == reference.FOLDER / "run"


def test_keeping_replaces_the_tables_and_nothing_else(run):
    write(run, one=[FOLD], two=[FOLD])
    target = reference.keep(run)
    (target / "README.md").write_text("what these are")
    write(run, two=[{**FOLD, "n": 1}])
    (run / "tables" / "picture.png").write_bytes(b"no image may be kept")
    reference.keep(run)
    assert {path.name for path in target.iterdir()} == {"README.md", "two.csv"}
    assert (target / "two.csv").read_bytes() == (run / "tables" / "two.csv").read_bytes()


def test_a_damaged_table_is_never_kept_over_a_good_one(run):
    write(run, one=[FOLD])
    kept = reference.keep(run) / "one.csv"
    before = kept.read_text()
    (run / "tables" / "one.csv").write_text("")
    with pytest.raises(StudyError, match="one.csv"):
        reference.keep(run)
    assert kept.read_text() == before


def test_verify_ends_with_0_where_all_agrees_and_with_1_where_not(run, monkeypatch):
    monkeypatch.setattr(reference, "check_fresh", lambda run: None)  # it asks for executed notebooks
    monkeypatch.setattr(pages, "run_dir", lambda profile, seed: run)

    def ends(command):
        done = CliRunner().invoke(pages.app, command)
        return done.exit_code, done.stdout

    write(run, one=[FOLD])
    assert ends("reference") == (0, f"tables kept in {reference.folder(run)}\n")
    assert ends("verify")[0] == 0
    write(run, one=[{**FOLD, "n": 1}])
    code, told = ends("verify")
    assert code == 1 and "n is 1" in told


def test_a_run_without_tables_or_with_a_broken_one_is_refused(run):
    for step in (reference.keep, reference.compare):
        with pytest.raises(StudyError, match="make reproduce"):
            step(run)
    write(run, one=[FOLD])
    reference.keep(run)
    (run / "tables" / "one.csv").write_text("")
    with pytest.raises(StudyError, match="one.csv"):
        reference.compare(run)


@pytest.mark.parametrize("old, new, told", [
    ("rounding:", "rouding:", "rouding"),
    ("    within: 10\n", "    within: -1\n", "-1"),
    ("    within: 10\n", "    within: .nan\n", "nan"),
    ('    rows: ["metric=*"]', '    rows: ["metric"]', "rows"),
    ("    tables: [findings]", "    tables: []", "tables"),
    ("rules:", "rules: [", "YAML"),
])
def test_a_mistake_in_the_tolerances_is_told(tmp_path, old, new, told):
    text, path = reference.TOLERANCES.read_text(encoding="utf-8"), tmp_path / "tolerances.yaml"
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(StudyError, match="tolerances.yaml") as error:
        reference.tolerances(path)
    assert told in str(error.value)
