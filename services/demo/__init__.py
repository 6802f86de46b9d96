"""The demo: orders all kinds of things, watches their sagas to the end, checks the books. A client like any other."""
