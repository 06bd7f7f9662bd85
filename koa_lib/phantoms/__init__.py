"""Drawn knees with known truth: latent findings, captions, drawing, other anatomies, cohorts.

May import grades, images, data.manifest and errors.
"""
