"""A teacher whose answers lie in a folder already: `teacher` reads them, `positions` says whose they are."""
