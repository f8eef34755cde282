"""From prompts to committed answers: which shard a prompt is in, how a chat goes on, which answers may train.

Law of this package: it decides and keeps books; it asks no teacher itself, and writes only whole shards.
"""
