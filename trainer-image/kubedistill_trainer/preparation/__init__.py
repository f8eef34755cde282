"""What Prepare is made of: reading the user's files, choosing rows, looking at models, and the report."""
