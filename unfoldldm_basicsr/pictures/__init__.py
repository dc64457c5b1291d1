"""Pictures and plots of results."""
