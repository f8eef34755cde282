"""`kubedistill`: validate, plan and run jobs without a cluster. It decides nothing: `kubedistill_operator.core` does.

Law of the package: it imports neither kopf nor a cluster's client nor a tensor library; it starts in a moment.
"""
