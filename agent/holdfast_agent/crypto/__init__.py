"""Key hierarchy, seal and open: the only place where data is encrypted or decrypted."""
