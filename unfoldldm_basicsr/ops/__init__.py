"""ops of unfoldldm_basicsr."""
