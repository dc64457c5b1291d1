"""training of unfoldldm_basicsr."""
