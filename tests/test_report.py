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

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABc3UBGAAAAABJRU5ErkJggg==")
SCORES = ("source,item,row,metric,unit,published,ours,ci_low,ci_high,rule,verdict,reason,follows_from,model\n"
          "jpm2026,table_2,test,accuracy,percent,76.94,31.0123,28.5,33.52,3 points,not comparable,synthetic phantoms,,True\n"
          "jpm2026,text,images,count,images,8260,8260,,,same count as in the manifest,same,,,False\n")


def exhibit(entry):
    """A stand-in table or figure as the library shows it."""
    body = f'<img alt="stand-in" src="../figures/{entry.key}.png">' if entry.kind == "figure" else "<table><tr><td>1</td></tr></table>"
    myst = f"({entry.key})=\n\n```{{raw}} html\n<figure class=\"koa-exhibit\" id=\"{entry.key.replace('_', '-')}\">{body}<figcaption>\n```\n\n**{entry.name}.** Caption.\n\n```{{raw}} html\n</figcaption></figure>\n```"
    return new_output("display_data", data={"text/html": "<b>session</b>", "text/markdown": myst, "text/plain": "x"})


def notebook(stem):
    cells = [
        new_markdown_cell(f"# {int(stem[:2])} · {stem[3:].replace('_', ' ').capitalize()}\n\nWhich question is asked, with $p_k$ in it. See [the grades](01_data_audit.ipynb#table_1)."),
        new_code_cell('profile = "demo"\nseed = 42', metadata={"tags": ["parameters"]}),
        new_code_cell('profile = "smoke"', metadata={"tags": ["injected-parameters"]}),
        new_code_cell("fit(study)", outputs=[new_output("stream", name="stdout", text="fold 0 epoch 29"), new_output("stream", name="stderr", text="/a/folder/x.py: UserWarning")]),
        *[new_code_cell(f'show("{key}")', outputs=[exhibit(entry)]) for key, entry in entries.read(stem).items()],
    ]
    papermill = {"duration": 61.5, "end_time": "2026-02-03T04:05:06.000000", "input_path": "/a/folder/x.ipynb"}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}, "papermill": papermill})


def write_run(folder):
    """A finished stand-in run: every notebook with every exhibit that is declared, and their files."""
    for name in ("nb", "tables", "figures"):
        (folder / name).mkdir(parents=True)
    for stem in running.names():
        nbformat.write(notebook(stem), folder / "nb" / f"{stem}.ipynb")
    listed = {}
    for key, entry in entries.every().items():
        file = f"{entry.kind}s/{key}.{'csv' if entry.kind == 'table' else 'png'}"
        (folder / file).write_bytes(b"a,b\n1,2\n" if entry.kind == "table" else PIXEL)
        listed[key] = {"name": entry.name, "kind": entry.kind, "number": entry.number, "title": entry.title, "notebook": entry.notebook, "caption": "Caption.",
                       "alt": "stand-in", "files": [file], "reason": "", "commit": "1a2b3c4", "data": "5d6e7f8"}
    (folder / "exhibits.json").write_text(json.dumps(listed))
    (folder / "tables" / "scorecard.csv").write_text(SCORES)
    (folder / "tables" / "table_3.csv").write_text("kl_grade\n")
    (folder / "tables" / "findings.csv").write_text("finding,cohort,groups,files,detail\n")
    (folder / "inputs.yaml").write_text(yaml.safe_dump({"profile": "smoke", "seed": 42, "data": "", "external": "", "weights": "", "synthetic": True}))
    line = {"step": "features/a.npz", "reason": "seed changed", "time": "2026-02-03T04:04:10", "notebook": "03_fine_tune"}
    lines = [line | {"status": "built", "seconds": 1.25, "peak_mib": 1234.4}, line | {"status": "reused", "seconds": 0.0}]
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half a li')
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stand-in run, built once; tests that change it work on a copy."""
    folder = write_run(tmp_path_factory.mktemp("reports") / "smoke")
    assert build.build(folder) == folder / "html" / "index.html" and not (folder / "html.tmp").exists()
    return folder


def page(run, name):
    return (run / "html" / name).read_text(encoding="utf-8")


def test_every_page_says_synthetic(run):
    written = [path for name in ("*.html", "notebooks/*.html", "reports/*.html") for path in (run / "html").glob(name)]
    assert len(written) >= 20 and all("Synthetic phantoms" in path.read_text(encoding="utf-8") for path in written)


def test_front_page_states_the_run_and_leads_to_every_item(run):
    text = page(run, "index.html")
    for name in places.PAPER_ITEMS:
        assert f'href="notebooks/{entries.every()[name].notebook}.html#{name.replace("_", "-")}"' in text, name
    for wanted in ("1a2b3c4", "5d6e7f8", "2026-02-03 04:05", "tables/table_3.csv", "figures/figure_8.png", "1 not comparable", "1 same", "synthetic phantoms", 'src="figures/published_against_ours.png"'):
        assert wanted in text, wanted


def test_links_to_exhibits_lead_to_their_label_on_other_pages(run):
    text = page(run, "notebooks/05_external_evaluation.html")
    assert 'href="01_data_audit.html#table-1"' in text and 'id="table-1"' in page(run, "notebooks/01_data_audit.html")


def test_notebook_page_folds_code_hides_parameters_and_sets_math(run):
    text = page(run, "notebooks/05_external_evaluation.html")
    assert "/a/folder" not in text and "Show source" in text and "<math" in text and "epoch 29" in text
    assert "seed" not in text.split("bd-article")[1].split("<figure")[0].replace("Show source", "") or "injected" not in text
    assert not {"mathjax.js", "mathjax@", "require.js"} & set(text.lower().split('"'))


def test_environment_page_lists_steps_and_versions(run):
    text = page(run, "reports/environment.html")
    for wanted in ("features/a.npz", "seed changed", ">1.2<", ">1,234<", "torch", "Memory", "5d6e7f8"):
        assert wanted in text, wanted


@pytest.fixture
def quick(monkeypatch):
    """Stand in for Sphinx: a function that takes what the only page shall hold."""
    def stand_in(markup):
        def write_page(work):
            (work / "html").mkdir()
            (work / "html" / "index.html").write_text(markup, encoding="utf-8")
        monkeypatch.setattr(build, "_run_sphinx", write_page)

    return stand_in


@pytest.mark.parametrize(("lost", "words"), [("tables/table_3.csv", "05_external_evaluation: tables/table_3.csv is gone"), ("nb/04_baselines.ipynb", "04_baselines has not been executed"),
                                             ("exhibits.json", "it has not shown 'table_1'")])
def test_what_is_missing_fails_the_build_by_name(run, tmp_path, quick, lost, words):
    quick("")
    copy = shutil.copytree(run, tmp_path / "smoke")
    (copy / lost).unlink()
    with pytest.raises(StudyError, match=words):
        build.build(copy)
    assert page(copy, "index.html") == page(run, "index.html")


@pytest.mark.parametrize("markup", ['<script src="https://cdn.example/x.js"></script>', '<a href="#nowhere">x</a>'])
def test_a_dead_link_or_a_remote_resource_keeps_the_last_good_report(run, tmp_path, quick, markup):
    quick(markup)
    copy = shutil.copytree(run, tmp_path / "smoke")
    with pytest.raises(StudyError, match="cdn.example|#nowhere"):
        build.build(copy)
    assert page(copy, "index.html") == page(run, "index.html") and (copy / "html.tmp" / "html" / "index.html").is_file()


def test_a_warning_of_sphinx_stops_the_build_and_names_it(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "smoke")
    book = nbformat.read(copy / "nb" / "04_baselines.ipynb", 4)
    book.cells.append(new_markdown_cell("{cite}`nobody1900`"))
    nbformat.write(book, copy / "nb" / "04_baselines.ipynb")
    with pytest.raises(StudyError, match="nobody1900"):
        build.build(copy)
    assert page(copy, "index.html") == page(run, "index.html")


def test_steps_are_those_of_the_last_execution(tmp_path):
    def line(step, status, seconds, **more):
        return json.dumps({"step": step, "status": status, "seconds": seconds, "reason": "because", "notebook": "03_fine_tune", "time": "2026-02-03T04:04:10", **more})

    other = json.dumps({"step": "features/b", "status": "built", "seconds": 9.0, "notebook": "interactive"})
    old = [line("features/gone", "built", 5.0), line("03_fine_tune", "built", 60.0, peak_mib=4000)]
    new = [line("features/a", "built", 2.0, peak_mib=900), line("features/a", "reused", 2.0, peak_mib=950), line("features/c", "reused", 3.0), line("03_fine_tune", "built", 7.5, peak_mib=1000)]
    (tmp_path / "run.jsonl").write_text("\n".join([*old, other, *new, '{"half', "[1]", '{"status": "built"}']))
    (found,) = provenance.steps(tmp_path)
    assert [(step["step"], step["status"], step["seconds"], step["peak_mib"]) for step in found["steps"]] == [("features/a", "built", 2.0, 950), ("features/c", "reused", 3.0, None)]
    assert (found["seconds"], found["peak_mib"], found["built"], found["reused"]) == (7.5, 1000, 1, 1)
    assert provenance.total([found, found | {"peak_mib": None, "seconds": None}]) == {"seconds": 7.5, "peak_mib": 1000, "built": 2, "reused": 2}
    assert provenance.steps(tmp_path / "nowhere") == []


@pytest.mark.parametrize("text", ["profile: [", "just words", "- a\n- b", "key: \x00"])
def test_damaged_inputs_are_a_sentence(tmp_path, text):
    (tmp_path / "inputs.yaml").write_text(text)
    with pytest.raises(StudyError, match="Delete it and run make again"):
        provenance.inputs(tmp_path)
    with pytest.raises(StudyError, match="Delete it and run make again"):
        study._read_inputs(tmp_path / "inputs.yaml")


def test_inputs_with_a_key_less_are_a_sentence(tmp_path):
    (tmp_path / "inputs.yaml").write_text("profile: smoke\nseed: 1\n")
    with pytest.raises(StudyError, match="lacks data, external, weights, content"):
        study._read_inputs(tmp_path / "inputs.yaml")


def test_each_reference_has_an_address_and_is_cited():
    folder = ROOT / "reports"
    entries = dict(re.findall(r"@\w+\{(\w+),(.*?)\n\}", (folder / "references.bib").read_text(encoding="utf-8"), re.DOTALL))
    assert len(entries) > 10 and not [key for key, body in entries.items() if not re.search(r"\b(doi|url) = ", body)]
    pages_of = [*folder.glob("*.md*"), *folder.glob("checklists/*.yaml"), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages_of)
    cited = set(re.findall(r"citation: (\w+)", text)) | {key for keys in re.findall(r"\{cite[:\w]*\}`([^`{]+)`", text) for key in keys.split(",")}
    assert cited == set(entries)


@pytest.mark.parametrize("markup", [
    '<script src="https://cdn.example/x.js"></script>', '<link rel="stylesheet" href="//cdn.example/x.css">',
    '<img src="http://cdn.example/x.png">', '<img srcset="a.png 1x, https://cdn.example/b.png 2x">',
    '<iframe src="https://cdn.example"></iframe>', '<form action="https://cdn.example"></form>',
    '<p style="background: url(https://cdn.example/x.png)">', '<style>@import "https://cdn.example/x.css";</style>'])
def test_remote_resources_are_found(tmp_path, markup):
    (tmp_path / "a.html").write_text(f"<html><body>{markup}</body></html>")
    assert len(pages.remote_resources(tmp_path)) == 1
    (tmp_path / "a.html").write_text('<a href="https://doi.org/10.1">paper</a><img src="data:image/png;base64,AA//BB">')
    assert pages.remote_resources(tmp_path) == []


def test_dead_links_are_found(tmp_path):
    links = '<a href="b.html"></a><a href="#here"></a><a href="a.html#there"></a>'
    (tmp_path / "a.html").write_text(f'<p id="there">{links}</p>')
    found = [line.split(", ")[0] for line in pages.dead_links(tmp_path)]
    assert found == ["a.html links to #here", "a.html links to b.html"]


def test_real_data_is_named_without_its_folder(tmp_path):
    content = {"profile": "oai", "seed": 1, "data": "/some/where/oai_webp", "external": ""}
    assert not provenance.is_synthetic(content)
    (tmp_path / "inputs.yaml").write_text(yaml.safe_dump(content))
    facts = dict(provenance.facts(provenance.Run.read(tmp_path)))
    assert facts["Training data"] == "oai_webp" and facts["External data"] == "none given"
    assert facts["Data hash"] == facts["Commit"] == "unknown"


def test_citation_file_is_valid():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0" and content["license"] == "MIT"
    assert content["authors"] == [{"name": "koa-clip authors"}]
    assert {"message", "title", "type", "version"} <= set(content)
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_smoke_report_is_whole_stamped_and_offline(smoke_run):
    html = smoke_run / "html"
    assert build.missing(provenance.Run.read(smoke_run)) == pages.dead_links(html) == pages.remote_resources(html) == []
    assert all("Synthetic phantoms" in path.read_text(encoding="utf-8") for path in html.glob("notebooks/*.html"))


def test_a_folder_without_run_or_with_a_damaged_notebook_is_refused(tmp_path):
    with pytest.raises(StudyError, match="is no run folder"):
        build.build(tmp_path)
    run = write_run(tmp_path / "smoke")
    (run / "nb" / "01_data_audit.ipynb").write_text("not json")
    with pytest.raises(StudyError, match="01_data_audit.ipynb is not a notebook"):
        build.build(run)
