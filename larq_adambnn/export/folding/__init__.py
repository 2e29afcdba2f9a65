"""Folding in three steps: read a model into records, rewrite them, emit a model."""
