"""Showing: exhibits of a study with caption and provenance, drawings and charts, and running its notebooks.

May import the top level, pictures, `data`, `phantoms` and `paper`; nothing here is needed to train or to
measure.
"""

import sys

# Reading a notebook, jsonschema would compile a grammar of web addresses, a second in each process, which no
# notebook has checked.
sys.modules.setdefault("rfc3987_syntax", None)
