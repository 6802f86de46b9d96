"""A module that can't be imported."""

raise SystemExit("this module ends whoever imports it")
