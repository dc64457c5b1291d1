"""The commands of ``unfoldldm``: thin, arguments in, one call, message out."""
