"""Reference tables: numbers are copied below the data's hash, and nothing else."""

import json

import pytest

from koa_lib import reference
from koa_lib.errors import StudyError


def test_tables_are_kept_below_the_hash_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "reference")
    run = tmp_path / "oai"
    (run / "tables").mkdir(parents=True)
    (run / "tables" / "table_2.csv").write_text("metric,value\naccuracy,1\n")
    (run / "tables" / "picture.png").write_bytes(b"no image may be kept")
    (run / "data.json").write_text(json.dumps({"hash": "abc-def"}))
    target = reference.keep(run)
    assert target == tmp_path / "reference" / "oai" / "abc-def"
    assert [path.name for path in target.iterdir()] == ["table_2.csv"]
    assert (target / "table_2.csv").read_text() == (run / "tables" / "table_2.csv").read_text()


def test_run_without_tables_is_refused(tmp_path):
    with pytest.raises(StudyError, match="make reproduce"):
        reference.keep(tmp_path)
