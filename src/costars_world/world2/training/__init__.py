"""Trains everything that World 2 ships, from rendered pictures alone, on one GPU in one run."""
