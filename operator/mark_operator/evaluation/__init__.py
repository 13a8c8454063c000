"""What only an EvalRun has: how its spec becomes a Job's input, and its verdict. Pure."""
