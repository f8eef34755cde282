"""Pure decisions: the pipeline, what was seen, the plan, the status. No I/O, no clock, no randomness."""
