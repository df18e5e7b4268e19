"""Compression as a service: answers and checkpoints over HTTP.

What a request passes: ``app`` (routes, keys, limits, problems) → ``gateway`` (policies, batches of answers) → ``jobs``
(the table of checkpoints) → ``building`` (a pinned base model). ``deployments`` puts them on Ray Serve; the rest knows
no Ray and is driven by tests as it is.
"""
