"""What a person reads, made from plain values. It must do no I/O and read no clock: the time is a parameter."""
