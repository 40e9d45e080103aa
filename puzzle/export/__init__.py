"""Checkpoint folders that serving engines load as they are."""
