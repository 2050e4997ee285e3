"""The gateway: one OpenAI-compatible address for applications, whoever answers behind it."""
