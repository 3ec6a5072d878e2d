"""The student stage: learning from labels and teachers, and evaluation."""
