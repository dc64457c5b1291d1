"""Option files: read, completed and checked as a whole."""
