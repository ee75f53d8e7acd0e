"""Received opinions about architectures as experiments with verdicts: one file a claim."""
