"""One trial's training: trial, learner, loop, step, optimizer, augmentation, checkpoint.

Read ``trial.py`` first.
"""
