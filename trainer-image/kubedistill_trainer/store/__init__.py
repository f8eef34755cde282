"""Files between the stages: a workspace, the rows and shards in it, and the manifests that make them visible.

Law of this package: a file is whole or invisible; whatever belongs together is committed by one file that is written
last; the same code serves a folder, a claim and a bucket.
"""
