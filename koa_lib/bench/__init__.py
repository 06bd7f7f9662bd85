"""`koa bench`: this library beside a plain way, the same pictures in and the same numbers out.

May import the top level, pictures, phantoms, `data` and `grading`; only `cli` imports it.
"""
