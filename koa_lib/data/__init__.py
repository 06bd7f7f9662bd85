"""Cohorts as files: manifests, and what fetches, checks and audits the pictures that they list.

May import images, grades, metrics, stats, errors and store.
"""
