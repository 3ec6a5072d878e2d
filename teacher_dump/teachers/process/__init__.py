"""A teacher that is a program in its own environment: `teacher` asks it, `program` runs it, `guard` ends it.

Its side is one file, `teacher_dump/bridge/occ_bridge.py`, which also says what is declared and what a keyframe is.
"""
