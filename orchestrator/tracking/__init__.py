"""Ledger to MLflow, in a process beside the run. The only room that imports mlflow.

Read ``follow.py`` first, then ``mirror.py``.
"""
