"""The payments service: charges cards, and gives the money back."""
