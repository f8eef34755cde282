"""The walk through a cluster that the README shows: install, lay out the models, apply, wait, show.

`make demo-cluster` prints it (`tests/cluster/demo.py`), the end-to-end tests assert on it.
"""
