"""Finished jobs after the masters forgot them: a local database of each master. See DESIGN.md."""
