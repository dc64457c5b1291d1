"""Published data sets as LMDBs, and the option files of a new training."""
