"""The Kellgren-Lawrence scale (Kellgren and Lawrence 1957, doi:10.1136/ard.16.4.494)."""

GRADES = (0, 1, 2, 3, 4)
NAMES = ("Normal", "Doubtful", "Mild", "Moderate", "Severe")
