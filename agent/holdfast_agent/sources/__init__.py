"""What can be backed up: the file system, walked by directory descriptors."""
