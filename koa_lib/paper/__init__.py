"""The paper under study: its published numbers and what follows from them, the readings of its training, its
tables and times, its claims and the scorecard.

May import the top level, and `data` for the manifests.
"""
