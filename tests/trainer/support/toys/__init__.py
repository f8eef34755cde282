"""Small models for tests of the output's formats."""
