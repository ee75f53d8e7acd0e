"""Ledger to MLflow, in a process beside the run; the only room that imports mlflow.

May import ``compare``, ``ray_cluster``, ``ledger`` and ``spec``. Read ``follow.py`` first, the
process, then ``mirror.py``, what it does with each record.
"""
