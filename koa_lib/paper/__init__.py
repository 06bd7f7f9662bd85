"""The paper under study: its published numbers, what follows from them, its claims and the scorecard.

May import the top level only.
"""
