"""What ``import orchestrator`` offers: runs as tables, and runs started as the command does.

May import every room. Start with ``runs.py``. ``orchestrator/__init__.py`` exports from here and
loads nothing before it is asked for.
"""
