"""The run itself: runner, dispatcher, slots, Tune trial, scheduler, finals, budget, watchdog.

The home of ray.train and ray.tune on the driver's side. Read ``runner.py`` first.
"""
