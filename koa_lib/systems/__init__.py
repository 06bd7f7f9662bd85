"""One file per other paper or extra analysis: its arms, its rule, its table; imports the top level."""
