"""The operator: it watches runs, plans them, starts what was confirmed, and writes down what happened."""
