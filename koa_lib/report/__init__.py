"""Showing: exhibits of a study with caption and provenance, drawings and charts, and running its notebooks.

May import the top level, pictures, `data`, `phantoms` and `paper`; nothing here is needed to train or to
measure.
"""
