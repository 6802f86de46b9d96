"""The parcels service: takes orders for parcels, and keeps what becomes of them."""
