"""Pure builders of the children, one file a kind; plain dicts out."""
