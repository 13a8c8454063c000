"""The command line `mark`. It must hold no rule of the operator: it asks the API server, and for an offline plan the
operator's own pure code.
"""
