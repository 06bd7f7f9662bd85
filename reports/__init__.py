"""Building the report: pages, front page, cards, checklists, reference tables and PDF,
from the files of a run."""
