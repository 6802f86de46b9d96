"""The correlator as a service: the library does the work, `sagas/` holds the definitions that it follows."""
