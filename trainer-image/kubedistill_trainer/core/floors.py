"""The least logprob there is, in memory and in files. It imports nothing: the store and its writers know no torch."""

from __future__ import annotations

LOGPROB_FLOOR = -80.0
"""Stands for "no mass": exp(-80) is 2e-35, still a normal float32, so 0 * log 0 is 0 and never NaN; float16 holds it
exactly. No -inf is ever in a signal or a file."""
