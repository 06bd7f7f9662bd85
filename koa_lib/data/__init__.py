"""Cohorts as files: manifests, and what fetches, checks and audits the pictures that they list.

May import images, grades, metrics, stats, errors and store.
"""

from pathlib import Path

MANIFESTS = Path(__file__).resolve().parents[2] / "data_manifests"
