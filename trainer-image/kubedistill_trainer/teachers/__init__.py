"""Teachers: one protocol (`protocol.Teacher`) and the ways to reach a model."""
