"""The local runner: the seam `core.ports.Cluster` on processes of this machine.

The same plan and the same manifests as on a cluster; a Job is some processes, a Deployment is a server, a claim is a
folder. Everything that must survive the runner lies in the job's folder.
"""
