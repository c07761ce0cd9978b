"""The regression suite: one class for each question that a person asks about speed, memory or accuracy.

Every version is pinned, so that an edit does not throw history away: raise it by hand when a benchmark measures another thing.
"""
