"""Pools of candidates, and screens that rank them by probes on frozen features.

Read ``pool.py`` first: from lines of text to candidates; ``run.py`` carries a screen out as Ray
tasks and records it. Which candidates are worth a tournament is in ``compare/shortlist.py``. May
import ``tracking`` and the rooms below it.
"""
