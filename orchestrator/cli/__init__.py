"""Click commands: parse, call, print. The only room that imports click.

Nothing that is imported at its top loads torch, ray or mlflow. Read ``main.py`` first.
"""
