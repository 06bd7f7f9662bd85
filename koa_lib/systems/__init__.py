"""One file per other paper: its arms, its rule, its table; and the published encoders of pictures and texts
that they take.

May import the top level, pictures, data and phantoms.
"""
