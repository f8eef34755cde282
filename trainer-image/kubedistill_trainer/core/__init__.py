"""The pure core of the trainer: signals, losses, targets, batches, schedules, filters, scores, estimates.

Law of this package: values in, values out. Nothing here reads a file, a clock, the environment or the network, and
nothing draws a random number that its arguments do not determine. It may import the API, torch and the metric
libraries; it never imports the stages, the teachers, the store or the engine.

Shape suffixes on tensors: B sequences, T tokens of a sequence (or of a packed row), N counted positions (those that
predict a target), K teacher candidates, V vocabulary, H hidden size. Log-probabilities are natural logarithms.
"""
