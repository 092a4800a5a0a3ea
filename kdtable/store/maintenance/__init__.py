"""Checking, copying and pruning a store."""
