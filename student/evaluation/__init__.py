"""occ-eval: what is scored, how, and the report."""
