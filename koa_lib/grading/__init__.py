"""`koa grade`: a run's model as one file, and grades of any picture file by it.

May import the top level, pictures, and `data` for its walk over folders.
"""
