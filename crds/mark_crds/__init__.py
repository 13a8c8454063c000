"""The contract: every schema that the operator, the trainer and people share, as typed models. It must do no I/O and import nothing of ours."""
