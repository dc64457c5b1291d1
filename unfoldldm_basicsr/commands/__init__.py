"""commands of unfoldldm_basicsr."""
