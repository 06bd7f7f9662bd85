"""One file per other paper: its arms, its rule, its table; imports the top level."""
