"""Pure builders of Kubernetes objects, one file for each kind of child: API models in, plain dicts out. No I/O."""
