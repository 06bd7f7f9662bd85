"""One file per other paper: its arms, its rule, its table; and the frozen encoders that several of them take.

May import the top level, pictures, data and phantoms.
"""
