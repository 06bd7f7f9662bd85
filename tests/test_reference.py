"""Reference tables: kept per data, and a fresh run differs from them by no more than what is stated."""

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib.errors import StudyError
from reports import reference

SCORE = {"item": "table_2", "row": "test", "metric": "accuracy", "unit": "percent", "published": 76.94, "ours": 60.0, "ci_low": 55.0, "ci_high": 65.0,
         "verdict": "not replicated", "reason": "ours differs by -16.9"}
FOLD = {"part": "train", "fold": 1, "n": 960, "accuracy": 0.5, "qwk": 0.7, "mae": 0.6}
FACT = {**SCORE, "verdict": "same", "reason": "counted in the manifest"}
# Table, its row, the column that moves and by how much it may: one line per kind of cell.
KINDS = [
    ("folds_and_seeds", FOLD, "accuracy", 0.05),
    ("folds_and_seeds", FOLD, "qwk", 0.05),
    ("folds_and_seeds", FOLD, "mae", 0.1),
    ("folds_and_seeds", FOLD, "n", 0),
    ("tomorrow", {"arm": "a table of tomorrow", "macro_f1": 0.4}, "macro_f1", 0.05),
    ("tomorrow", {"arm": "a table of tomorrow", "trees": 40}, "trees", 0),
    ("table_4", {"model": "ViT", "n": 420, "accuracy": 60.0, "published_accuracy": 73.7}, "accuracy", 10),
    ("networks", {"model": "ViT", "n": 240, "qwk": 0.3}, "qwk", 0.2),
    ("mcnemar", {"baseline": "ViT", "n": 355, "difference": -0.15}, "difference", 0.1),
    ("table_5", {"source": "this run", "system": "clip", "accuracy": 50.0}, "accuracy", 5),
    ("table_4", {"model": "ViT", "n": 420, "accuracy": 60.0, "published_accuracy": 73.7}, "published_accuracy", 0),
    ("table_2", {"metric": "accuracy", "test split": 60.0, "published test": 76.94}, "test split", 5),
    ("table_2", {"metric": "n", "test split": 240}, "test split", 0),
    ("table_3", {"kl_grade": 1, "sensitivity": 50.0, "published_sensitivity": 68.5}, "sensitivity", 10),
    ("table_5", {"source": "public peer", "system": "Chen VGG19", "accuracy": 69.63}, "accuracy", 0),
    ("by_metric", {"metric": "qwk", "value": 0.7, "ci_low": 0.6}, "value", 0.05),
    ("by_metric", {"metric": "mae", "value": 0.7, "ci_low": 0.6}, "ci_low", 0.1),
    ("arithmetic", {"check": "macro F1 implied", "value": 72.6, "expected": 76.66}, "value", 0),
    ("retrieval", {"grade": 4, "pictures": 9, "precision_at_10": 0.5}, "precision_at_10", 0.2),
    ("scorecard", SCORE, "ours", 5),
    ("scorecard", SCORE, "ci_low", 10),
    ("scorecard", {**SCORE, "unit": "ratio", "metric": "auc", "ours": 0.8}, "ours", 0.05),
    ("scorecard", FACT, "ours", 0),
]
NOT_COMPARED = [
    ("mcnemar", {"baseline": "ViT", "p_holm": 0.04}, {"p_holm": 0.3}),
    ("mcnemar", {"baseline": "ViT", "clip_only": 50}, {"clip_only": 70}),
    ("scorecard", SCORE, {"verdict": "inconclusive", "reason": "ours differs by -15"}),
    ("scorecard", {**SCORE, "metric": "p_value", "unit": "ratio", "ours": 0.04}, {"ours": 0.2}),
]


@contextmanager
def repository():
    """A run folder, empty but for its inputs, and a place for references beside the committed tolerances."""
    stated = reference.TOLERANCES
    with tempfile.TemporaryDirectory() as base, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "FOLDER", Path(base) / "reports" / "reference")
        patch.setattr(reference, "TOLERANCES", reference.FOLDER / "tolerances.yaml")
        reference.FOLDER.mkdir(parents=True)
        shutil.copy(stated, reference.TOLERANCES)
        run = Path(base) / "run"
        (run / "tables").mkdir(parents=True)
        read(run, "abc-def")
        yield run


@pytest.fixture
def run():
    with repository() as folder:
        yield folder


def read(run, data_hash, synthetic=False):
    (run / "inputs.yaml").write_text(f"profile: run\ndata: ''\nsynthetic: {str(synthetic).lower()}\n")
    (run / "data.json").write_text(json.dumps({"hash": data_hash}))


def write(run, **tables):
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(run / "tables" / f"{name}.csv", index=False, lineterminator="\n")
    listed(run)


def listed(run):
    """Note the tables that are there as the exhibits of the run."""
    known = dict.fromkeys(("name", "kind", "notebook", "title", "reason", "commit", "data"), "")
    exhibits = {path.stem: {**known, "files": [f"tables/{path.name}"]} for path in (run / "tables").glob("*.csv")}
    (run / "exhibits.json").write_text(json.dumps(exhibits))


def misses(run, name, before, after):
    """What misses when a table was `before` in the reference and is `after` now."""
    write(run, **{name: before})
    reference.keep(run)
    write(run, **{name: after})
    return reference.compare(run).misses


@pytest.mark.parametrize("name, row, column, allowed", KINDS, ids=[f"{name}-{column}" for name, _, column, _ in KINDS])
@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from([-1, 1]), st.booleans()), min_size=1, max_size=30))
def test_a_number_may_move_by_what_is_stated_and_no_further(name, row, column, allowed, moves):
    after = [{**row, column: row[column] + sign * ((allowed * (1.001 + share) or 1e-6 + share) if beyond else share * allowed)} for share, sign, beyond in moves]
    with repository() as run:
        missed = misses(run, name, [row] * len(moves), after)
    wanted = [(name, column, allowed, row[column], moved[column]) for moved, (_, _, beyond) in zip(after, moves, strict=True) if beyond]
    numbers = missed.astype({"reference": float, "found": float})
    assert list(numbers[["table", "column", "allowed", "reference", "found"]].itertuples(index=False, name=None)) == wanted


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1) | st.just(np.nan), st.floats(-0.1, 0.1) | st.just(np.nan)), min_size=1, max_size=8))
def test_a_table_agrees_exactly_when_pandas_says_so(cells):
    before = pd.DataFrame({"part": "test", "qwk": [value for value, _ in cells]})
    after = before.assign(qwk=[value + step for value, step in cells])
    try:
        pd.testing.assert_frame_equal(before, after, rtol=0, atol=0.05)
        agrees = True
    except AssertionError:
        agrees = False
    with repository() as run:
        assert misses(run, "folds_and_seeds", before, after).empty == agrees


@pytest.mark.parametrize("name, row, change", NOT_COMPARED)
def test_what_a_few_pictures_turn_over_is_not_compared(run, name, row, change):
    assert misses(run, name, [row], [{**row, **change}]).empty


def test_a_verdict_without_a_model_must_be_the_same(run):
    assert list(misses(run, "scorecard", [FACT], [{**FACT, "verdict": "differs"}])["column"]) == ["verdict"]
    judged = {**SCORE, "verdict": "not comparable", "reason": "synthetic phantoms"}
    assert list(misses(run, "scorecard", [judged], [{**judged, "verdict": "replicated"}])["column"]) == ["verdict"]


def test_another_text_is_another_row_and_its_numbers_are_not_looked_at(run):
    missed = misses(run, "folds_and_seeds", [FOLD, FOLD], [FOLD, {**FOLD, "part": "test", "accuracy": 0.9}])
    assert missed[["column", "reference", "found"]].values.tolist() == [["part", "train", "test"]]


@pytest.mark.parametrize("before, after", [(0.5, np.nan), (np.nan, 0.5), (0.5, "none")])
def test_a_number_against_none_is_a_miss(run, before, after):
    assert list(misses(run, "folds_and_seeds", [{**FOLD, "qwk": before}], [{**FOLD, "qwk": after}])["column"]) == ["qwk"]


def test_long_whole_numbers_are_not_rounded(run):
    assert list(misses(run, "three", [{"image_id": 90096950010001}], [{"image_id": 90096950010002}])["column"]) == ["image_id"]


def test_a_row_or_column_of_one_side_only_is_named(run):
    missed = misses(run, "folds_and_seeds", [FOLD, {**FOLD, "fold": 2}], [{**FOLD, "fold": 2, "new": 1}])
    assert missed[["row", "column", "reference", "found"]].values.tolist() == [
        ["", "new", "missing", "there"], ["part train, fold 1, n 960", "", "there", "missing"]]
    text = reference.report(reference.compare(run))
    assert "column 'new' is only in the run" in text and "(part train, fold 1, n 960): this row is only in the reference" in text


def test_a_table_of_one_side_only_is_named(run):
    write(run, one=[FOLD], two=[FOLD])
    reference.keep(run)
    (run / "tables" / "one.csv").rename(run / "tables" / "three.csv")
    listed(run)
    text = reference.report(reference.compare(run))
    assert "one: this table is only in the reference" in text and "three: this table is only in the run" in text


def test_line_ends_and_number_format_do_not_matter(run):
    table = run / "tables" / "folds_and_seeds.csv"
    table.write_bytes(b'part,n,qwk,note\n"train\nwhole",960,0.5,\ntest,1e3,,nan\n')
    listed(run)
    kept = reference.keep(run)
    table.write_bytes(b'part,n,qwk,note\r\n"train\r\nwhole",960.0,5.0e-1,NaN\r\n"test",1000,NaN,""\r\n')
    comparison = reference.compare(run)
    assert comparison.misses.empty and (comparison.tables, comparison.numbers) == (1, 3)
    assert "1 tables, 3 numbers agree within the stated tolerances with reports/reference/run/abc-def" in reference.report(comparison)
    assert kept == comparison.folder


def test_the_report_of_many_misses_is_short_and_counts_the_rest(run):
    rows = [{**FOLD, "fold": fold} for fold in range(40)]
    write(run, one=rows, two=[FOLD])
    reference.keep(run)
    write(run, one=[{**row, "qwk": 0.1} for row in rows], two=[{**FOLD, "n": 1}])
    lines = reference.report(reference.compare(run)).splitlines()
    assert len(lines) <= 23 and "41 differences" in lines[0]
    assert any("two" in line and "n is 1, in the reference 960; must be equal" in line for line in lines)
    assert any("and 37 more; by table: one 40, two 1" in line for line in lines)


def test_other_data_have_no_reference(run):
    write(run, folds_and_seeds=[FOLD])
    reference.keep(run)
    read(run, "123-456")
    with pytest.raises(StudyError, match="no reference for this data: reports/reference/run/123-456 has no tables.*make reference"):
        reference.compare(run)


def test_phantoms_are_kept_by_the_name_of_the_run_and_real_data_by_their_hash(run):
    assert reference.folder(run) == reference.FOLDER / "run" / "abc-def"
    read(run, "123-456", synthetic=True)
    assert reference.folder(run) == reference.FOLDER / "run"


def test_keeping_replaces_the_tables_and_nothing_else(run):
    write(run, one=[FOLD], two=[FOLD])
    (run / "tables" / "picture.png").write_bytes(b"no image may be kept")
    target = reference.keep(run)
    (target / "README.md").write_text("what these are")
    (run / "tables" / "one.csv").unlink()
    listed(run)
    reference.keep(run)
    assert {path.name for path in target.iterdir()} == {"README.md", "two.csv"}
    assert (target / "two.csv").read_bytes() == (run / "tables" / "two.csv").read_bytes()


def test_a_run_without_tables_is_refused(run):
    for step in (reference.keep, reference.compare):
        with pytest.raises(StudyError, match="make reproduce"):
            step(run)


def test_a_broken_table_is_named(run):
    write(run, one=[FOLD])
    reference.keep(run)
    (run / "tables" / "one.csv").write_text("")
    with pytest.raises(StudyError, match="one.csv is no CSV table"):
        reference.compare(run)


@pytest.mark.parametrize("old, new, told", [
    ("rounding:", "rouding:", "'rouding' is unknown"),
    ("    within: 10\n", "    whithin: 10\n", "whithin' is unknown"),
    ("    within: 10\n", "", "within' is missing"),
    ("    within: 10\n", "    within: -1\n", "within' is -1"),
    ("    within: 10\n", "    within: .nan\n", "within' is nan"),
    ('    rows: ["metric=*"]', '    rows: ["metric"]', "column=pattern"),
    ("    tables: [findings]", "    tables: []", "needs patterns"),
    ("rules:", "rules: [", "not valid YAML"),
])
def test_a_mistake_in_the_tolerances_is_told(tmp_path, old, new, told):
    text = reference.TOLERANCES.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "tolerances.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(StudyError, match="tolerances.yaml") as error:
        reference.tolerances(path)
    assert told in str(error.value)
