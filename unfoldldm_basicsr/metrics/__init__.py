"""metrics of unfoldldm_basicsr."""
