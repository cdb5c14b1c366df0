"""World 2: a procedural renderer of cartoon scenes with exact truth."""
