"""The seam to Kubernetes: observe, apply, delete, write status. The only room that asks the API server."""
