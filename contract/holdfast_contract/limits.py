"""Every maximum of format and protocol: the unit is in the name, the reason beside it."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# --- chunks and packs
CHUNK_PLAIN_BYTES_MAX: Final = 4 * MIB
"""Largest plaintext of one chunk: what opening one may allocate."""
SEALED_BYTES_MAX: Final = CHUNK_PLAIN_BYTES_MAX + 256 * KIB
"""Largest sealed chunk: raw payload, padding (3.1 % at 4 MiB), header and tag."""
PACK_BYTES_MAX: Final = 64 * MIB
"""Largest pack: a server receives one into memory."""
PACK_BYTES_TARGET: Final = 16 * MIB
"""An agent closes a pack at this size: two in flight fit its memory ceiling."""
PACK_CHUNKS_MAX: Final = 65_536
"""Most chunks of one pack: bounds the catalog transaction that indexes it."""

# --- tree
PAGE_BYTES_MAX: Final = MIB
"""Largest page of a directory, and largest tree chunk."""
NAME_BYTES_MAX: Final = 255
"""Longest name of one entry, as in Linux."""
DEPTH_MAX: Final = 4096
"""Deepest directory below a snapshot's root."""
WALK_PATH_BYTES_MAX: Final = 32 * KIB
"""Longest path of a directory that a backup enters: a walk holds one for every level (67 MB at
DEPTH_MAX), and the path it stands at fits into a message. The kernel takes 4,096 at once."""
INLINE_BYTES_MAX: Final = 64 * KIB
"""An entry's extent list or attribute values longer than this lie in blocks of their own."""
SMALL_FILE_BYTES_MAX: Final = 512 * KIB
"""Default of a domain's `small_file_bytes_max`: larger files have no content id."""
BUNDLE_BYTES_TARGET: Final = MIB
"""A bundle is cut after the file that reaches this size."""

# --- objects
MANIFEST_BYTES_MAX: Final = 4 * MIB
"""Largest manifest: paths and tags make it grow."""
IDENTITY_BYTES_MAX: Final = 16 * KIB
DOMAIN_BYTES_MAX: Final = MIB
REFS_BYTES_MAX: Final = 2 << 30
"""Largest refs object: 67 million ids."""
REFS_DEPTH_MAX: Final = 16
"""Longest chain of differences below a full list of refs."""
JOURNAL_OBJECT_BYTES_MAX: Final = 8 * MIB
JOURNAL_RECORDS_MAX: Final = 4096
"""Most records of one journal object."""
EPOCHS_MAX: Final = 1024
PATHS_MAX: Final = 1024
"""Most paths of one snapshot."""
EXCLUDES_MAX: Final = 1024
"""Most exclude patterns of one snapshot."""
TOKEN_DOMAINS_MAX: Final = 100
"""Most domains that one token names: each is a range of the queries that ask for its rows."""
TAGS_MAX: Final = 64
TAG_BYTES_MAX: Final = 128
REPORT_CHUNKS_MAX: Final = 16
"""Most report chunks of one snapshot; what they have no room for is counted."""

# --- control channel and HTTP
MESSAGE_BYTES_MAX: Final = MIB
"""Largest message of the control channel: bulk data never crosses it."""
AGENT_MESSAGE_BYTES_MAX: Final = 256 * KIB
"""Largest message of an agent: a hello with its roots, a path at work, the end of a job. A server
holds one for each connection that has proven nothing yet."""
COUNT_MAX: Final = (1 << 63) - 1
"""Largest count, size or time: what every database and language keeps exactly."""
SUMMARY_FIELDS_MAX: Final = 64
"""Most numbers that an agent tells at the end of a job; there are about a dozen."""
HAVE_IDS_MAX: Final = 4096
FETCH_IDS_MAX: Final = 256
"""Most chunks of one fetch: bounds a reply to about 1 GiB, and what a broken one repeats."""
REPORTED_NAMES_MAX: Final = 100_000
"""Most names (skipped, not_exact, plan) relayed with one result; the rest is counted."""
RESULT_BYTES_MAX: Final = 64 * MIB
"""Largest relayed result of a job."""
NOT_EXACT_BYTES_MAX: Final = MIB
"""Largest sealed not_exact list kept in a job row."""
JSON_BODY_BYTES_MAX: Final = MIB
"""Largest JSON request body."""
PAGE_ROWS_MAX: Final = 1000
"""Most rows of one page of a list."""
AVOIDED_IDS_MAX: Final = 262_144
"""Most ids of damaged or missing chunks that an agent takes from its server for one job: 30 MB.
Those beyond are met by the next round, or the next backup."""
COMMIT_ROUNDS_MAX: Final = 5
"""How often a commit may be answered with missing chunks before the job fails."""
RESERVED_NAMES_MAX: Final = 64
"""Object names reserved in one block."""
