"""UniCuCo: one trained network answers every request to compress a large language model.

Nothing heavy is imported here: each part of the package is imported by the module that needs it.
"""

__version__ = "0.1.0"
