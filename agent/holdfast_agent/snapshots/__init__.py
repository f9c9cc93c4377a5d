"""Reading a stored snapshot: chunks opened, manifest believed, tree walked."""
