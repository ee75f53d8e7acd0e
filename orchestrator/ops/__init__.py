"""What people do around a run: doctor, jobs on a Ray head, status and live view.

May import every room but ``cli``. Read ``status.py`` first.
"""
