"""preparing of unfoldldm_basicsr."""
