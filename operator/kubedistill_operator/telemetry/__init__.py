"""What people see besides the status: Prometheus metrics, computed at scrape, and Kubernetes Events."""
