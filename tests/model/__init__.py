"""The protocol as an executable model: what may happen, in every order, and what must hold.

`state` has the words, `rules` the switches and the bounds; `uploads`, `collection` and `misfortune`
say what may happen next, `search` looks at all of it or walks through it by seed. Ages and grace
periods do not exist here: whatever may be deleted, may be deleted at once.

Two uses. `test_protocol_model` searches scenes exhaustively: with the right rules nothing breaks,
and each rule left out is found by its shortest trace. `test_commit_refinement` drives walks of the
model against the product's repository and compares both after every step.

Collection, compaction, the orphan sweep and the trash have no code in the product yet; they are
modelled first.
"""
