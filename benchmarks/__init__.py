"""Reproducible measurements: each module is a command that prints one JSON object.

They belong to the repository, not to the installed package; see the README beside this file.
"""
