"""The tables of published numbers: whole, and a slip is named with file, row and value."""

import shutil

import pytest

from koa_lib.errors import StudyError
from koa_lib.paper import published
from koa_lib.study import MANIFESTS


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MANIFESTS / "published", tmp_path / "published")


@pytest.mark.parametrize("name", published.TABLES)
def test_the_committed_tables_are_sound(name):
    assert len(published.read(MANIFESTS / "published", name))


@pytest.mark.parametrize("name, old, new, told", [
    ("jpm2026", "76.94,percent,,,model", "about 77,percent,,,model", ["row 6", "about 77"]),
    ("jpm2026", "76.94,percent,,,model", "769.4,percent,,,model", ["row 6", "769.4"]),
    ("jpm2026", "76.94,percent,,,model", ",percent,,,model", ["row 6"]),
    ("jpm2026", "76.94,percent,,,model", "76.94,promille,,,model", ["row 6", "promille", "percent"]),
    ("jpm2026", "78.4,83.9", ",83.9", ["row 10"]),
    ("jpm2026", "78.4,83.9", "99,83.9", ["row 10", "99"]),
    ("jpm2026", "item,row,metric", "item,line,metric", ["column row"]),
    ("jpm2026", "table_2,test,macro_f1", "table_2,test,accuracy", ["twice"]),
    ("jpm2026", "discussion,train_test_drop,about", "discussion,train_test_drop,roughly", ["roughly"]),
    ("peers", "0.7029", "70.29", ["70.29"]),
    ("literature", "69.7,", "n/a?,", ["n/a?"]),
    ("confusion_matrices", ",556,", ",-556,", ["-556"])])
def test_a_slip_is_named(folder, name, old, new, told):
    path = folder / f"{name}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StudyError) as error:
        published.read(folder, name)
    assert all(word in str(error.value) for word in [path.name, *told])


@pytest.mark.parametrize("content", [None, "", "item;row\n"])
def test_a_lost_or_broken_table_is_named(folder, content):
    (folder / "peers.csv").unlink()
    if content is not None:
        (folder / "peers.csv").write_text(content)
    with pytest.raises(StudyError, match="peers.csv"):
        published.read(folder, "peers")
