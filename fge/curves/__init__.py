"""Curves through weight space: fit, evaluate, baselines, the path through the origin."""
