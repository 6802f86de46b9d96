"""The inventory service: sets articles aside for orders, and frees them again."""
