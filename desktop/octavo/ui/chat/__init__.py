"""The chat page: transcript, composer, model picker and the list of conversations."""
