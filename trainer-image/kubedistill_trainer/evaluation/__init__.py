"""Measuring a model: how it reads the teacher's answers, what it answers itself, and how quickly.

Law of this package: models and values in, numbers and texts out. It neither reads nor writes files, and it decides
nothing; gates are in `core`.
"""
