"""Ledger to MLflow, in a process beside the run, and the best models as files and in MLflow; the
only room that imports mlflow.

May import ``compare``, ``ray_cluster``, ``ledger`` and ``spec``. Read ``follow.py`` first, the
process, which ``beside.py`` starts, then ``view.py``, what it should show.
"""
