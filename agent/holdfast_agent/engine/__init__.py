"""From entries to a snapshot: walk, cut, identify, ask, seal, pack, send, describe; synchronous.

- `source`: what the engine asks of the file system (a Protocol)
- `walk`: directories depth-first; unchanged pages are kept undecoded
- `files`: content of one regular file: bundled, cut, or found to be known
- `assembly`: pages wait in post-order until every id in them is known
- `shipping`: threads that identify, ask, seal, pack and upload
- `refs`: what the snapshot needs, sorted outside memory
- `history`: what the server shows against what is remembered
"""
