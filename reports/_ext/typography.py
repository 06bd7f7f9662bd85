"""One style of numbers in every text of a page, whoever wrote it: "47 %", "−0.3"."""

import re

from koa_lib.report.words import typeset

# What is code, a formula or a drawing stays as it is.
_KEPT = {"pre", "code", "script", "style", "math", "svg"}
_TAG = re.compile(r"(<[^>]*>)")
_NAME = re.compile(r"<(/?)(\w+)")


def typeset_body(html):
    """The same HTML with the text between its tags typeset;
    a minus begins a number only after a space or an opening tag."""
    parts, kept, closing = [], 0, False
    for part in _TAG.split(html):
        tag = _NAME.match(part)
        if tag:
            closing = bool(tag[1])
            kept += (tag[2] in _KEPT) * (-1 if closing else 1)
        elif part and not kept:
            part = part[0] + typeset(part[1:]) if closing and part[0] == "-" else typeset(part)
        parts.append(part)
    return "".join(parts)


def _mend(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = typeset_body(context["body"])


def setup(app):
    """Register the typesetting of each page with Sphinx."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
