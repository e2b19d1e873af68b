"""Test doubles and tiny checkpoints that several test folders share."""
