"""Parts that only a test adds: each is one file here and one registration in tests/flows/test_throw_away.py."""
