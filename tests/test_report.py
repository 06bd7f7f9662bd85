"""The report: pages from executed notebooks, offline, complete, whole or not at all."""

import base64
import json
import re
import shutil

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from koa_lib import study
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.report import entries, running
from reports import build, pages, places, provenance

PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
FILES = {
    "tables/scorecard.csv":
        "source,item,row,metric,unit,published,ours,ci_low,ci_high,rule,verdict,reason,follows_from,model\n"
        "jpm2026,table_2,test,accuracy,percent,76.94,31.0,28.5,33.5,x,not comparable,phantoms,,True\n"
        "jpm2026,text,images,count,images,8260,8260,,,x,same,,,False\n",
    "tables/findings.csv": "finding,cohort,groups,files,detail\n",
    "tables/table_3.csv": "kl_grade\n",
    "inputs.yaml": "{profile: smoke, seed: 42, data: '', external: '', weights: '', synthetic: true}",
    "run.jsonl":
        '{"step": "features/a.npz", "reason": "seed changed", "time": "2026-02-03T04:04:10", '
        '"status": "built", "notebook": "03_fine_tune", "seconds": 1.25, "peak_mib": 1234.4}\n{"half a li',
}


def exhibit(entry):
    """A stand-in table or figure as the library shows it."""
    table = "<table><tr><td>1</td></tr></table>"
    body = f'<img alt="x" src="../figures/{entry.key}.png">' if entry.kind == "figure" else table
    start = f'<figure class="koa-exhibit" id="{entry.key.replace("_", "-")}">{body}<figcaption>'
    parts = (f"({entry.key})=", f"```{{raw}} html\n{start}\n```", f"**{entry.name}.** Caption.",
             "```{raw} html\n</figcaption></figure>\n```")
    data = {"text/html": "<b>session</b>", "text/markdown": "\n\n".join(parts)}
    return new_output("display_data", data=data)


def notebook(stem):
    def tagged(code, *tags, **more):
        return new_code_cell(code, metadata={"tags": list(tags)}, **more)

    told = [new_output("stream", name="stdout", text="fold 0 epoch 29"),
            new_output("stream", name="stderr", text="/a/folder/x.py: UserWarning")]
    words = f"# {int(stem[:2])} · {stem}\n\nIs $p_k$ in [a table](01_data_audit.ipynb#table_1)?"
    cells = [
        new_markdown_cell(words),
        tagged('profile = "unshown"', "parameters"),
        tagged('profile = "unshown"', "injected-parameters"),
        tagged("6 * 7", "solution"),
        new_code_cell("fit(study)", outputs=told),
        *[new_code_cell("show()", outputs=[exhibit(entry)]) for entry in entries.read(stem).values()],
    ]
    papermill = {"end_time": "2026-02-03T04:05:06.000000", "input_path": "/a/folder/x.ipynb"}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "papermill": papermill})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stand-in run with every notebook and exhibit, built once; tests that change it work on a copy."""
    folder, listed = tmp_path_factory.mktemp("reports") / "smoke", {}
    for name in ("nb", "tables", "figures"):
        (folder / name).mkdir(parents=True)
    for stem in running.names():
        nbformat.write(notebook(stem), folder / "nb" / f"{stem}.ipynb")
    for key, entry in entries.every().items():
        file = f"{entry.kind}s/{key}.{'csv' if entry.kind == 'table' else 'png'}"
        (folder / file).write_bytes(b"a,b\n1,2\n" if entry.kind == "table" else PIXEL)
        listed[key] = {name: getattr(entry, name) for name in ("name", "kind", "number", "title", "notebook")}
        listed[key] |= {"caption": "Caption.", "alt": "x", "files": [file], "reason": "", "commit": "1a2b3c4",
                        "data": "5d6e7f8"}
    (folder / "exhibits.json").write_text(json.dumps(listed))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    assert build.build(folder) == folder / "html" / "index.html" and not (folder / "html.tmp").exists()
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "smoke")


def page(run, name="index.html"):
    return (run / "html" / name).read_text(encoding="utf-8")


def test_every_page_says_synthetic(run):
    html = run / "html"
    written = [path for part in ("", "notebooks/", "reports/") for path in html.glob(f"{part}*.html")]
    assert len(written) >= 20
    assert all("Synthetic phantoms" in path.read_text(encoding="utf-8") for path in written)


def test_front_page_states_the_run_and_leads_to_every_item(run):
    text = page(run)
    for key in places.PAPER_ITEMS:
        assert f'href="notebooks/{entries.every()[key].notebook}.html#{key.replace("_", "-")}"' in text, key
    for wanted in ("1a2b3c4", "5d6e7f8", "2026-02-03 04:05", "tables/table_3.csv", "figures/figure_8.png",
                   "1 not comparable", "1 same"):
        assert wanted in text, wanted


def test_notebook_page_links_folds_code_and_sets_math_but_shows_no_parameters_or_folders(run):
    text = page(run, "notebooks/05_external_evaluation.html")
    for wanted in ("Show source", "Show solution", "<math", "epoch 29", 'href="01_data_audit.html#table-1"'):
        assert wanted in text, wanted
    assert 'id="table-1"' in page(run, "notebooks/01_data_audit.html")
    for hidden in ("/a/folder", "unshown", "mathjax@"):
        assert hidden not in text, hidden


def test_environment_page_lists_steps_and_versions(run):
    text = page(run, "reports/environment.html")
    for wanted in ("features/a.npz", "seed changed", ">1.2<", ">1,234<", "torch", "5d6e7f8"):
        assert wanted in text, wanted


# Whole or not at all


@pytest.fixture
def only_page(monkeypatch):
    """Stand in for Sphinx: a function that takes what the only page shall hold."""
    def stand_in(markup):
        def write_page(work):
            (work / "html").mkdir()
            (work / "html" / "index.html").write_text(markup, encoding="utf-8")
        monkeypatch.setattr(build, "_run_sphinx", write_page)

    return stand_in


def refused(copy, told):
    """The build names what is wrong, and the last good pages stay."""
    before = page(copy)
    with pytest.raises(StudyError, match=told):
        build.build(copy)
    assert page(copy) == before


@pytest.mark.parametrize(("lost", "told"), [
    ("tables/table_3.csv", "05_external_evaluation: tables/table_3.csv"),
    ("nb/04_baselines.ipynb", "04_baselines"),
    ("exhibits.json", "'table_1'"),
    ("inputs.yaml", "inputs.yaml")])
def test_what_is_missing_fails_the_build_by_name(copy, only_page, lost, told):
    only_page("")
    (copy / lost).unlink()
    refused(copy, told)


@pytest.mark.parametrize(("markup", "told"), [
    ('<script src="https://cdn.example/x.js"></script>', "cdn.example"),
    ('<a href="#nowhere">x</a>', "#nowhere")])
def test_a_dead_link_or_a_remote_resource_keeps_the_last_good_report(copy, only_page, markup, told):
    only_page(markup)
    refused(copy, told)


def test_a_warning_of_sphinx_stops_the_build_and_names_it(copy, monkeypatch):
    write = build._write_sources

    def one_page(run, source):
        write(run, source)
        for path in (*source.glob("notebooks/*"), *source.glob("reports/*.md")):
            path.unlink()
        (source / "index.md").write_text("# A page\n\n{cite}`nobody1900`")

    monkeypatch.setattr(build, "_write_sources", one_page)
    refused(copy, "nobody1900")


def test_a_damaged_notebook_is_named(copy):
    (copy / "nb" / "01_data_audit.ipynb").write_text("not json")
    refused(copy, "01_data_audit.ipynb")


@pytest.mark.parametrize("text", ["profile: [", "just words", "- a\n- b", "key: \x00"])
def test_damaged_inputs_say_what_to_delete(tmp_path, text):
    (tmp_path / "inputs.yaml").write_text(text)
    for read in (lambda: provenance.inputs(tmp_path), lambda: study.stored_inputs(tmp_path / "inputs.yaml")):
        with pytest.raises(StudyError, match="inputs.yaml.*Delete it"):
            read()


# Links


@pytest.mark.parametrize("markup", [
    '<script src="https://cdn.example/x.js"></script>', '<link rel="stylesheet" href="//cdn.example/x.css">',
    '<img srcset="a.png 1x, https://cdn.example/b.png 2x">', '<iframe src="https://cdn.example"></iframe>',
    '<form action="https://cdn.example"></form>', '<p style="background: url(https://cdn.example/x.png)">',
    '<style>@import "https://cdn.example/x.css";</style>'])
def test_remote_resources_are_found_and_links_are_none(tmp_path, markup):
    (tmp_path / "a.html").write_text(f"<html><body>{markup}</body></html>")
    assert len(pages.problems(tmp_path)) == 1
    (tmp_path / "a.html").write_text('<a href="https://doi.org/10.1">x</a><img src="data:image/png,AA//BB">')
    assert pages.problems(tmp_path) == []


def test_dead_links_are_found(tmp_path):
    links = '<a href="b.html"></a><a href="#here"></a><a href="a.html#there"></a>'
    (tmp_path / "a.html").write_text(f'<p id="there">{links}</p>')
    found = pages.problems(tmp_path)
    assert len(found) == 2 and "#here" in found[0] and "b.html" in found[1]


def test_each_reference_has_an_address_and_is_cited():
    folder = ROOT / "reports"
    references = (folder / "references.bib").read_text(encoding="utf-8")
    known = dict(re.findall(r"@\w+\{(\w+),(.*?)\n\}", references, re.DOTALL))
    assert len(known) > 10 and all(re.search(r"\b(doi|url) = ", body) for body in known.values())
    citing = [*folder.glob("*.md*"), *folder.glob("checklists/*.yaml"), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in citing)
    cited = re.findall(r"\{cite[:\w]*\}`([^`{]+)`", text)
    assert set(re.findall(r"citation: (\w+)", text)) | set(",".join(cited).split(",")) == set(known)


def test_real_data_is_named_without_its_folder(tmp_path):
    (tmp_path / "inputs.yaml").write_text("{profile: oai, seed: 1, data: /some/where/oai_webp, external: ''}")
    found = provenance.Run.read(tmp_path)
    facts = dict(provenance.facts(found))
    assert not found.synthetic and "/some" not in str(facts)
    assert (facts["Training data"], facts["External data"]) == ("oai_webp", "none given")


def test_citation_file_is_valid():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0" and content["license"] == "MIT"
    assert {"message", "title", "type", "version", "authors"} <= set(content)
