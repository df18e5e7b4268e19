"""The commands of ``unicuco`` that are nothing else: their options and help; the work is in the modules they call.

Importing one is cheap (typer alone).
"""
