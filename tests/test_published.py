"""The tables of published numbers: whole as they are, and every slip in a copy is named with file, row and value."""

import shutil

import pytest

from koa_lib.errors import StudyError
from koa_lib.paper import published
from koa_lib.study import MANIFESTS


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MANIFESTS / "published", tmp_path / "published")


@pytest.mark.parametrize("name", published.TABLES)
def test_the_committed_tables_are_sound(folder, name):
    table = published.read(folder, name)
    assert len(table) and set(published.TABLES[name][0]) <= set(table)


@pytest.mark.parametrize("name, old, new, words", [
    ("jpm2026", "76.94,percent,,,model", "about 77,percent,,,model", ["row 6", "about 77", "number"]),
    ("jpm2026", "76.94,percent,,,model", "769.4,percent,,,model", ["row 6", "769.4", "range"]),
    ("jpm2026", "76.94,percent,,,model", ",percent,,,model", ["row 6", "number"]),
    ("jpm2026", "76.94,percent,,,model", "76.94,promille,,,model", ["row 6", "promille", "percent"]),
    ("jpm2026", "78.4,83.9", ",83.9", ["row 10", "two bounds"]),
    ("jpm2026", "78.4,83.9", "99,83.9", ["row 10", "99", "hold"]),
    ("jpm2026", "item,row,metric", "item,line,metric", ["column row"]),
    ("jpm2026", "table_2,test,macro_f1", "table_2,test,accuracy", ["twice"]),
    ("jpm2026", "discussion,train_test_drop,about", "discussion,train_test_drop,roughly", ["roughly", "about"]),
    ("peers", "0.7029", "70.29", ["70.29", "ratio"]),
    ("literature", "69.7,", "n/a?,", ["n/a?", "number"]),
    ("confusion_matrices", ",556,", ",-556,", ["-556", "count"]),
    ("other_systems", "71.86", "x", ["'x'", "number"])])
def test_a_slip_is_named(folder, name, old, new, words):
    path = folder / f"{name}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StudyError) as error:
        published.read(folder, name)
    assert all(word in str(error.value) for word in [f"{name}.csv", *words]) and "\n" not in str(error.value)


@pytest.mark.parametrize("content, words", [(None, "is not in data_manifests"), ("", "not a CSV table"), ("item;row\n", "lacks the column")])
def test_a_lost_or_broken_table_says_so(folder, content, words):
    (folder / "peers.csv").unlink()
    if content is not None:
        (folder / "peers.csv").write_text(content)
    with pytest.raises(StudyError, match=words):
        published.read(folder, "peers")
