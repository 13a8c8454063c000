"""Runs on one machine: the operator's own plan, its two steps, and the trainer as a child process."""
