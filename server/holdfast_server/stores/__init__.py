"""Where packs and manifests lie."""
