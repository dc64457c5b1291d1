"""weights of unfoldldm_basicsr."""
