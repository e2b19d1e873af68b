"""The OpenAI-compatible endpoint for other programs; its own thread and loop, no Qt, no store.

`thread.ServerThread` is the door. FastAPI and uvicorn are imported when it starts and not before.
"""
