"""Entries of a list are list items: docutils calls those of a bibliography something that no list may
hold."""


def _mend(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app):
    """Register the roles of list entries with Sphinx."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
