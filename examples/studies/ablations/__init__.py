"""Ablations of a distillation: one choice is changed at a time, and a measure that knows nothing of it decides.

`points` says what is trained, `prompts` and `answers` what on, `training` how, `measures` how good the students are,
`results` keeps the figures, `tables` and `plots` show them.
"""
