"""The life that every kind of run has: plan, confirmation, stages, end. Pure: no I/O, and time is a parameter."""
