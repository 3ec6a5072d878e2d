"""The dump stage: teachers and the program that writes what they know into a store."""
