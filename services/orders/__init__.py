"""The orders service: takes orders, and keeps what becomes of them."""
