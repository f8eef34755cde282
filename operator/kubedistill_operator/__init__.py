"""The operator: one pure function decides what happens next, everything else looks or acts.

Floors, each importing only what is below it: `handlers > cluster | telemetry > core > manifests > kubedistill_api`.
"""
