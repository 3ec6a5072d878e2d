"""The student stage: networks, the stream of frames and teacher stores, training, evaluation."""
