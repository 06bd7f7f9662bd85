"""Sphinx settings of the report. `reports.build` copies this folder beside the notebooks and writes
run.json."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
RUN = json.loads((HERE / "run.json").read_text(encoding="utf-8"))

sys.modules["rfc3987_syntax"] = None  # saves a second, see koa_lib/report/__init__.py
project = "koa-clip"
author = "the koa-clip authors"
language = "en"
html_title = f"koa-clip, run {RUN['run']}"
html_short_title = "koa-clip"

extensions = ["myst_nb", "sphinxcontrib.bibtex", "mathml", "roles", "typography"]
exclude_patterns = ["jupyter_execute"]
# Of anchors in other pages it knows headings only; dead links are looked for in the built pages.
suppress_warnings = ["myst.xref_missing"]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# papermill has run the notebooks; widgets would load scripts from a network.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
# Exhibits carry real labels, as MyST.
nb_render_markdown_format = "myst"
nb_mime_priority_overrides = [("html", "text/markdown", 0)]
nb_code_prompt_show = "Show {type}"
nb_code_prompt_hide = "Hide {type}"
html_math_renderer = "mathml"

html_theme = "sphinx_book_theme"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["koa.css"]
html_context = {"default_mode": "auto"}  # light or dark as the system says, until the reader chooses
html_show_search_summary = False  # a page in a plain folder may not read the others to quote them
html_sourcelink_suffix = ""
html_copy_source = html_show_sourcelink = False  # the notebooks without their outputs are in the repository
html_use_index = False
html_theme_options = {
    "logo": {"text": "koa-clip"},
    "announcement": RUN["banner"],
    "max_navbar_depth": 1,
    "toc_title": "On this page",
    "show_toc_level": 1,
    "search_bar_text": "Search the report",
    "use_fullscreen_button": False,
    "use_download_button": False,
    # The search stands in the navigation; a second menu button in an empty top bar would break the first.
    "navbar_persistent": [],
    "primary_sidebar_end": [],
    "secondary_sidebar_items": [],  # tables need the width; the page's sections are a menu in its header
    "back_to_top_button": False,
    "extra_footer": f"<p>{RUN['footer']}</p>",
    "footer_content_items": ["extra-footer.html"],
}
