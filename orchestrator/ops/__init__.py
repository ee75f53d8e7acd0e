"""What people do around a run: doctor, jobs on a Ray head, status and live view,
bars of long steps, MLflow's UI.

May import every room but ``cli``. Read ``status.py`` first, what is known of a run;
``live.py`` draws it.
"""
