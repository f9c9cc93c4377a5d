"""Every decoder against hostile bytes.

- `targets`: what is decoded, what may be raised, what has to come back
- `mutation`: seeded mutations without any engine, for the default lane
- `engine`: atheris over one target or all of them; a crash is a file, and replays from it
- `corpus/TARGET/`: seeds and finds, replayed by every run
"""
