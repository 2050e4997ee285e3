"""Learning curves on Banking77: targeted against uniform synthesis, and one full run on all 77 intents."""
