"""The demo: places orders, watches their sagas to the end, and checks the books. A client like any other."""
