"""Schedules, recipes, methods, one learner and one loop; nothing on disk."""
