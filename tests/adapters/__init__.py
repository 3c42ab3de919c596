"""Tests of the adapters: one contract over both frameworks, then each inside what its framework offers."""
