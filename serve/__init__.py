"""Serving: decodes with a drafter artifact, verifies against the target, and reports what it measured."""
