"""Requests to our HTTP APIs, made up from their OpenAPI documents by schemathesis: sound, broken and stray ones.

`python -m tests.http_fuzz --requests 10000 --seed 1` prints what was sent and how it was answered.
"""
