"""The seam to Kubernetes: observe, apply, delete, write status. The only room that talks to the API server for the pass."""
