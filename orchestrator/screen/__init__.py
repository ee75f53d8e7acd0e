"""Pools of candidates, screened by probes on frozen features, and the shortlist that comes of it.

Read ``pool.py`` first: from lines of text to candidates; ``run.py`` carries a screen out as Ray
tasks and records it; ``shortlist.py`` says which candidates are worth a tournament. May import
``compare`` and the rooms below it.
"""
