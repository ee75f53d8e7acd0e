"""Click commands: parse, call, print. The only room that imports click; may import all others.

Nothing that is imported at its top loads torch, ray or mlflow. Read ``main.py`` first: the group
and the exit codes. ``run.py`` starts runs, ``read.py`` reads them.
"""
