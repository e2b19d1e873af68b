"""Conversations: kept in SQLite, sent to a model one turn at a time."""
