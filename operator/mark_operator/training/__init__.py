"""What only a TrainingRun has: how its spec becomes a Job's input. Pure."""
