"""Tuning the learner's settings on the recorded evaluations of a run, in plain Python: nothing is measured anew.

- ``sweep``: which settings vary, over what, and the settings that a sweep tries.
- ``study``: what all trials share, and the score of one trial.
- ``halving``: which trial is next, who gets to the finals, and whether anybody beats the default.
"""
