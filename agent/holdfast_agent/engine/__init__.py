"""From walked entries to sealed packs: pure and synchronous."""
