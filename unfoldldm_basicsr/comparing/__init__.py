"""Fair comparisons of networks: equal data and budgets, costs, statistics, one report."""
