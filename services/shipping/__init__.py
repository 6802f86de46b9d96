"""The shipping service: sends parcels, and calls them back."""
