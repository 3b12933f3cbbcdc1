"""In which arithmetic, memory and order of launches an attack or a step runs; what it computes stays the same."""
