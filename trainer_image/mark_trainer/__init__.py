"""The trainer: one stage of a run as one process.

It must know nothing of Kubernetes but the files and variables of its Pod.
"""
