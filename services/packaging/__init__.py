"""The packaging service: packs what parcels hold, and unpacks it again."""
