"""The side of a teacher in its own environment: `occ_bridge` and examples; nothing else of the project is needed."""
