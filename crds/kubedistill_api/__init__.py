"""The API of KubeDistill: what is asked, what is reported, and what operator and image say to each other.

Law of the package: values only. Frozen pydantic models, closed enums and names; no I/O, no clock, no cluster
client and no tensor library. The CRD beside the package is generated from it.
"""
