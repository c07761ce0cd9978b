"""Side by side: normkit against the libraries people use instead, every one in a process of its own, in turns.

`normkit bench` is the command; `cases` is the one list of shapes, which the asv suite reads too.
"""
