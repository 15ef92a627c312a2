"""Drafters: one file a kind, and the artifact that carries them (`artifact`)."""
