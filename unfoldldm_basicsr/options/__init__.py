"""config of unfoldldm_basicsr."""
