"""common of unfoldldm_basicsr."""
